"""Compare methods by seed: the difference late in the run, paired, with its 95 percent interval.

python -m launch.compare A B [--metric=squared_error] [--window=0.1] [--format=text|markdown|latex|html]

A and B are method folders (DIR/label) or run folders (then every label that both hold). A run folder alone compares
all pairs of its labels.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from absl import flags

from launch.analysis.comparison import Row, compare_pairs, difference_table
from launch.analysis.curves import read
from launch.analysis.text import FORMATS, percent, printed
from launch.analysis.tuning import warn_of_tuning
from launch.cli import run_cli
from launch.errors import InputError
from launch.storage.run_folder import RUN, Run, read_runs


def compare(
    a: Path | str, b: Path | str | None = None, metrics: Sequence[str] | None = None, window: float = 0.1
) -> list[Row]:
    """Paired differences between the runs of `a` and `b` over the last `window` of the run; InputError if unlike."""
    return compare_pairs(_pairs(a, b), metrics, window)


def _pairs(a: Path | str, b: Path | str | None) -> list[tuple[Run, Run]]:
    first = read_runs(a, partial=True)
    if b is None:
        if len(first) < 2:
            raise InputError(f"{a}: holds the one label {next(iter(first))}; name a second folder to compare it with")
        return list(combinations(first.values(), 2))
    second = read_runs(b, partial=True)
    if (Path(a) / RUN).is_file() or (Path(b) / RUN).is_file():
        found = [(x, y) for x in first.values() for y in second.values() if x.meta["folder"] != y.meta["folder"]]
    else:
        found = [(first[label], second[label]) for label in first if label in second]
    if not found:
        raise InputError(f"{a} and {b}: no label in common ({', '.join(first)} and {', '.join(second)})")
    return found


def text(rows: Sequence[Row], window: float = 0.1, format: str = "text") -> str:
    """The comparisons as a table, with what has to be known to read it."""
    return printed(difference_table(rows, f"Mean over the last {percent(window)} of the run"), format)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `compare` brings none."""
    flags.DEFINE_list("metric", [], "Metrics to compare; default: the runs' headline.", flag_values=values)
    flags.DEFINE_float("window", 0.1, "Share of the run, at its end, that is compared.", flag_values=values)
    flags.DEFINE_enum("format", "text", FORMATS, "How the table is written.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the table."""
    if not 1 <= len(arguments) <= 2:
        raise InputError(f"launch.compare: {len(arguments)} folders given, one or two are needed: A [B]")
    rows = compare(*arguments, metrics=values.metric, window=values.window)
    warn_of_tuning(read(arguments))
    print(text(rows, values.window, values.format))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
