"""Downloads a data set and prepares it through tensorflow-datasets: `python -m tasks.prepare mnist --data_dir=D`.

Preparing needs TensorFlow (`pip install -e '.[tensorflow]'`); reading what was prepared does not.
"""

import argparse
import difflib
import importlib.util
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.data import default_data_dir, find_prepared

USED_HERE = ("mnist", "fashion_mnist", "kmnist", "emnist/balanced", "cifar100", "imagenet_resized/32x32")

_PROBE_SECONDS = 10.0


class PrepareError(Exception):
    """Why a data set cannot be prepared; its text is one line."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit status is 2, with one line on stderr, for what the user can put right."""
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(USED_HERE))
        return 0
    try:
        if options.name is None:
            raise PrepareError(f"NAME is missing; for example {', '.join(USED_HERE)} (--list)")
        prepare(options.name, options.data_dir, options.manual_dir)
    except PrepareError as error:
        print(f"tasks.prepare: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> Path:
    """Downloads and prepares data set `name`, says sizes and times, and gives the folder it lies in.

    Args:
        name: a name of tensorflow-datasets, with its configuration where it has several (`emnist/balanced`).
        data_dir: where to; `None` is the default folder of tensorflow-datasets.
        manual_dir: a folder with archives downloaded before; what lies there is not fetched.

    Raises:
        PrepareError: unknown name, no TensorFlow, no network, or what tensorflow-datasets could not do.
    """
    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    there = find_prepared(name, root)
    if there is not None:
        print(f"{name}: already prepared in {there} ({_megabytes(_folder_size(there))})")
        return there
    infos = _url_infos(name)
    if importlib.util.find_spec("tensorflow") is None:
        raise PrepareError("TensorFlow is needed to prepare data: pip install -e '.[tensorflow]'")
    infos = {url: info for url, info in infos.items() if not (manual_dir and Path(manual_dir, info.filename).is_file())}
    if infos:
        _check_network(infos)
        size = sum(info.size or 0 for info in infos.values())
        print(f"{name}: downloading {_megabytes(size)} to {root} (about {size / 1e7:.0f} s at 10 MB/s), then preparing")
    else:
        print(f"{name}: preparing the archives in {manual_dir} into {root}")
    start = time.monotonic()
    folder = _build(name, root, manual_dir)
    seconds = time.monotonic() - start
    print(f"{name}: prepared in {folder} ({_megabytes(_folder_size(folder))}) in {seconds:.0f} s")
    return folder


def _build(name: str, root: Path, manual_dir: str | None) -> Path:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        # Only array_record can be read back without TensorFlow.
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # noqa: BLE001 -- downloads and extractors raise many kinds
        raise PrepareError(f"{name}: could not be prepared in {root}: {_one_line(error)}") from None
    return Path(builder.data_path)


def _url_infos(name: str) -> dict[str, Any]:
    """What tensorflow-datasets would download for `name`, by address; raises for a name that it does not know."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise PrepareError(f"tensorflow-datasets is needed ({error}): pip install -e '.[run]'") from None
    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0]
    if base not in known:
        raise PrepareError(f"NAME: unknown data set '{name}'{_nearest(base, known)}; see --list")
    builder = tfds.builder_cls(base)
    configs = [config.name for config in builder.BUILDER_CONFIGS]
    if "/" in name and name.split("/", 1)[1] not in configs:
        config = name.split("/", 1)[1]
        allowed = ", ".join(f"{base}/{c}" for c in configs) or base
        raise PrepareError(
            f"NAME: '{base}' has no configuration '{config}'{_nearest(config, configs)}; allowed: {allowed}"
        )
    if "/" not in name and len(configs) > 1:
        raise PrepareError(
            f"NAME: '{base}' needs one of its configurations: {', '.join(f'{base}/{c}' for c in configs)}"
        )
    infos = dict(builder.url_infos or {})
    if base == "imagenet_resized":  # its addresses are those of all sizes
        pixels = name.split("/", 1)[1].split("x")[0]
        infos = {url: info for url, info in infos.items() if info.filename.startswith(f"Imagenet{pixels}_")}
    return infos


def _check_network(urls: Iterable[str]) -> None:
    """Raises where a host cannot be reached: the download itself would try for minutes before it says so."""
    for host, url in {urllib.parse.urlsplit(url).netloc: url for url in urls}.items():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            continue  # the host answers; whether it gives the file is for the download to say
        except OSError as error:
            reason = _one_line(getattr(error, "reason", error))
            raise PrepareError(
                f"cannot reach {host} ({reason}); give --manual_dir=DIR with archives you have"
            ) from None


def _nearest(name: str, allowed: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _one_line(error: object) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"{', '.join(USED_HERE)}, or another of theirs")
    parser.add_argument("--data_dir", help="where to put it (default: the folder of tensorflow-datasets)")
    parser.add_argument("--manual_dir", help="a folder with archives downloaded before; what lies there is not fetched")
    parser.add_argument("--list", action="store_true", help="print the names that the tasks here use")
    return parser


if __name__ == "__main__":
    sys.exit(main())
