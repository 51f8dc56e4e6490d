"""Sections of tables, sentences and a figure as two files of the same contents: Markdown, and a page of its own."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.analysis.text import Table, joined
from launch.storage.durable import replacing


class Section(NamedTuple):
    """What stands under a heading, in this order: why it is not told, the figure, the tables, the verdicts."""

    title: str = ""
    tables: Sequence[Table] = ()
    verdicts: Sequence[str] = ()
    figure: Path | None = None
    problem: str = ""


def write_pages(path: Path, title: str, sections: Sequence[Section]) -> list[Path]:
    """Write `path` with the endings `.md` and `.html`, the page with the figures in it; where they are."""
    markdown, body = [f"# {title}"], [f"<h1>{html.escape(title)}</h1>"]
    for each in sections:
        if each.title:
            markdown.append(f"## {each.title}")
            body.append(f"<h2>{html.escape(each.title)}</h2>")
        if each.problem:
            markdown.append(f"Not told: {each.problem}")
            body.append(f"<p>Not told: {html.escape(each.problem)}</p>")
        if each.figure:
            alt = (each.title or title).lower()
            data = base64.b64encode(each.figure.read_bytes()).decode()
            markdown.append(f"![{alt}]({each.figure.name})")
            body.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">')
        if each.tables or each.verdicts:
            markdown.append(joined(each.tables, each.verdicts, "markdown"))
            body.append(joined(each.tables, each.verdicts, "html"))
    page = PAGE.format(title=html.escape(title), body="\n".join(body))
    texts = {path.with_suffix(".md"): "\n\n".join(markdown) + "\n", path.with_suffix(".html"): page}
    for where, text in texts.items():
        with replacing(where) as file:
            file.write(text.encode())
    return list(texts)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; color: #333; margin: 2rem auto; max-width: 72rem; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-size: .85rem; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; }}
p {{ font-size: .9rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
