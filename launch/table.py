"""Tabulate run folders: per label and setting the mean with its 95 percent interval, early, late and over all.

python -m launch.table DIR... [--metric=squared_error,dormant_units] [--window=0.1] [--every=50tasks|STEPS]
    [--format=markdown|text|latex|html]

Intervals are Student's, from 30 seeds on the bootstrap's. Runs under way are read from their checkpoints.
"""

from collections.abc import Sequence

from absl import flags

from launch.analysis.comparison import mean_table
from launch.analysis.curves import curves, read
from launch.analysis.long_table import coarser, edges_every, every_text
from launch.analysis.text import FORMATS, printed
from launch.analysis.tuning import warn_of_tuning
from launch.cli import run_cli
from launch.storage.run_folder import Run


def table(runs: Sequence[Run], metrics: Sequence[str] | None = None, window: float = 0.1) -> str:
    """Markdown: the means that `analysis.comparison.mean_table` describes."""
    return printed(mean_table(curves(runs), metrics, window), "markdown")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `table` brings none."""
    flags.DEFINE_list("metric", [], "Metrics to tabulate; default: the runs' headline.", flag_values=values)
    flags.DEFINE_float("window", 0.1, "Share of the run that counts as early and late.", flag_values=values)
    flags.DEFINE_string("every", None, "Joins bins: 50tasks, or a number of steps.", flag_values=values)
    flags.DEFINE_enum("format", "markdown", FORMATS, "How the table is written.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the table."""
    runs = read(arguments, "table")
    warn_of_tuning(runs)
    if values.every is not None:
        runs = [coarser(run, edges_every(run, values.every)) for run in runs]
    found = mean_table(curves(runs), values.metric, values.window)
    joined = [every_text(values.every)] if values.every is not None else []
    print(printed(found._replace(remarks=[*found.remarks, *joined]), values.format))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
