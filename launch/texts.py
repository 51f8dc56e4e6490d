"""Text for people: aligned tables, sizes, times."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def size_text(number: float) -> str:
    """Bytes in three digits, as `1.5 MB`."""
    for name in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {name}"
        number /= 1000
    return f"{number:.3g} GB"


def time_text(seconds: float) -> str:
    """Seconds in two digits, as `3.5 hours`."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {name}"
    return f"{seconds:.2g} seconds"
