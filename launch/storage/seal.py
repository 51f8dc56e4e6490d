"""Folders that know what was written into them: `manifest.json` holds the SHA-256 of every file, and of itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.storage.durable import why

SCHEMA = 1
MANIFEST = "manifest.json"


def seal(folder: Path, step: int, **facts: Any) -> None:
    """Write the manifest of all that lies in `folder`, which will bear the name `step`; `facts` stand in it too."""
    files = {name: _sha256(folder / name) for name in files_in(folder)}
    (folder / MANIFEST).write_bytes(_text({"schema": SCHEMA, "step": step, "files": files, **facts}))


def facts_of(path: Path) -> dict[str, Any]:
    """What a manifest says; the folder has been verified."""
    return json.loads((path / MANIFEST).read_bytes())


def verify(path: Path) -> str:
    """What is wrong with the folder `path`, in words; nothing where every byte is as it was written.

    Files that were put beside its own do not matter, unless they lie in a folder of its own.
    """
    path = Path(path)
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        return f"{MANIFEST} cannot be read ({why(error)})" if (path / MANIFEST).exists() else f"{MANIFEST} is missing"
    manifest = _parsed(text)
    if manifest is None:
        return f"{MANIFEST} is damaged"
    if manifest["schema"] != SCHEMA:
        return f"{MANIFEST} has schema {manifest['schema']}, this program reads schema {SCHEMA}"
    if path.name != str(manifest["step"]):
        return f"the folder is called {path.name} and holds step {manifest['step']}"
    try:
        return _differing(path, manifest["files"])
    except OSError as error:
        return f"cannot be read ({why(error)})"


def _text(manifest: Mapping[str, Any]) -> bytes:
    """A manifest with a hash of itself; the same bytes for the same contents."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A manifest, or None where any byte of it is not as it was written."""
    try:
        manifest = json.loads(text)
        return manifest if _text(manifest) == text else None
    except (ValueError, AttributeError, TypeError):
        return None


def _differing(path: Path, files: Mapping[str, str]) -> str:
    present = files_in(path)
    missing = sorted(set(files) - set(present))
    if missing:
        return f"{missing[0]} is missing{and_more(missing)}"
    own = {name.partition("/")[0] for name in files if "/" in name}
    added = sorted(name for name in set(present) - set(files) if "/" in name and name.partition("/")[0] in own)
    if added:
        return f"{added[0]} is not of this checkpoint{and_more(added)}"
    changed = [name for name in files if _sha256(path / name) != files[name]]
    return f"{changed[0]} is not as it was written{and_more(changed)}" if changed else ""


def and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def files_in(folder: Path) -> list[str]:
    """All files below a folder but the manifest, as relative paths with "/", sorted."""
    paths = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return sorted(name for name in (path.relative_to(folder).as_posix() for path in paths) if name != MANIFEST)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
