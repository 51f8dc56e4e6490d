"""Tables for people: the one place where a table becomes text, Markdown, LaTeX or HTML."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from launch.analysis.statistics import Estimate, interval
from launch.errors import unknown
from launch.texts import aligned

FORMATS = ("text", "markdown", "latex", "html")
NOT_WIDENED = "not widened for their number"


class Table(NamedTuple):
    """Rows of text, the headings first, and what has to be known to read them; `left` columns are set to the left."""

    rows: Sequence[tuple[str, ...]]
    remarks: Sequence[str] = ()
    left: int = 1


def printed(table: Table, format: str = "text") -> str:
    """A table as aligned text, as Markdown, as LaTeX (booktabs), or as HTML.

    Raises:
        InputError: another format.
    """
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    return {"text": _text, "markdown": _markdown, "latex": _latex, "html": _html}[format](table)


def joined(tables: Iterable[Table], verdicts: Sequence[str] = (), format: str = "text") -> str:
    """Tables one after the other, then the verdicts, a line each; tables without rows are left out."""
    parts = [printed(table, format).rstrip() for table in tables if len(table.rows) > 1]
    mark = "% " if format == "latex" else "- " if format == "markdown" else ""
    if format == "html":
        verdicts = [f"<p><b>{html.escape(line)}</b></p>" for line in verdicts]
    return "\n\n".join([*parts, *(["\n".join(mark + line for line in verdicts)] if verdicts else [])])


def _text(table: Table) -> str:
    return "\n".join([*aligned(table.rows), *([""] if table.remarks else []), *table.remarks])


def _markdown(table: Table) -> str:
    head, *rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    rule = "|" + "---|" * table.left + "---:|" * (len(table.rows[0]) - table.left)
    return "\n".join([head, rule, *rows, *(["", " ".join(table.remarks)] if table.remarks else [])])


def _latex(table: Table) -> str:
    head, *rows = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in table.rows]
    columns = "l" * table.left + "r" * (len(table.rows[0]) - table.left)
    return "\n".join(
        [f"% {remark}" for remark in table.remarks]
        + [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    )


def _escaped(cell: str) -> str:
    for mark in "%&#_$":
        cell = cell.replace(mark, "\\" + mark)
    # A hyphen before a digit or between A and B is a minus sign, save in an exponent.
    words = [f"${word}$" if word.strip("[],").startswith("-") else word for word in cell.split(" ")]
    return " ".join(words)


def _html(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *rows = table.rows
    lines = ["<table>", row(head, "th"), *(row(each, "td") for each in rows), "</table>"]
    return "\n".join([*lines, *(f"<p>{html.escape(remark)}</p>" for remark in table.remarks)])


def mean_text(values: np.ndarray) -> str:
    """Mean and interval over seeds [seed] as text; empty where nothing was measured."""
    values = np.asarray(values, float)
    return estimate_text(Estimate(*map(float, interval(values)))) if np.isfinite(values).any() else ""


def estimate_text(found: Estimate) -> str:
    """`value [low, high]`, without ends that do not exist; what is infinite was not reached."""
    if np.isnan(found.value):
        return ""
    value, low, high = ("not reached" if np.isinf(each) else f"{each:.4g}" for each in found)
    return value if np.isnan(found.low) or np.isinf(found.low) else f"{value} [{low}, {high}]"


def span_text(span: slice) -> str:
    """Tasks as people count them, from 1."""
    return f"{span.start + 1}–{span.stop}" if span.stop - span.start > 1 else f"{span.stop}"


def percent(share: float) -> str:
    """A share as `25%`."""
    return f"{100 * share:g}%"
