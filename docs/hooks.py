"""What the site needs beyond Markdown: results and notebooks as pages, mathematics as MathML, doctests as examples."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import griffe
import latex2mathml.converter
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_BAR = re.compile(r"<mo[^>]*>(?:\||&#x0*7C;)</mo>")


def on_files(files: Files, config: Any) -> Files:
    """Adds the studies of `results/`, and a page for every notebook."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.name in ("README.md", "suite.md") or path.suffix in (".png", ".gif"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(file.abs_src_path or "").read_text())
        files.append(File.generated(config, f"{file.src_uri.removesuffix('.ipynb')}.md", content=page(notebook)))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Mathematics becomes MathML, which browsers draw without a script."""
    return _MATHS.sub(_mathml, text)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    drawn = latex2mathml.converter.convert(html.unescape(found[2]), display=display)
    return _BAR.sub('<mo lspace="0" rspace="0" stretchy="false">|</mo>', drawn)


def page(notebook: dict[str, Any]) -> str:
    """The notebook as Markdown, its pictures inside."""
    return "\n\n".join(part for cell in notebook["cells"] for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            png = "".join(data["image/png"].split())
            base64.b64decode(png, validate=True)
            parts.append(f'<img alt="figure" src="data:image/png;base64,{png}">')
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            parts.append(f"```text\n{text.rstrip()}\n```")
    return parts


class Examples(griffe.Extension):
    """Renders the section `Example:` of a docstring as code that runs."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
