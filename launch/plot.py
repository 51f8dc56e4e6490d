"""Draw run folders as one figure, several folders on one axis.

python -m launch.plot DIR... [--metric=squared_error,dormant_units] [--format=png] [--out=F] [--every=50tasks|STEPS]
    [--against=step_size|abruptness] [--reference=fresh_network] [--tuning]

Runs under way are drawn as far as their checkpoints reach, and the caption says how far that is.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.analysis.curves import caption, curves, read, tuned_on
from launch.analysis.long_table import coarser, edges_every, every_text
from launch.analysis.metrics import checked_metrics
from launch.analysis.tuning import refuse_tuning
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.figures import figure
from launch.figures.parts import draw_curves


def plot(
    directories: Sequence[Path | str] | Path | str,
    metrics: Sequence[str] | None = None,
    out: Path | str | None = None,
    format: str | None = None,
    against: str | None = None,
    tuning: bool = False,
    every: str | None = None,
    reference: str | None = None,
) -> Path:
    """Draw every run in `directories` (run folders or single runs), one panel per metric; returns the figure's path.

    The settings that differ between the runs are named in the legend, those that are equal in the caption. By default
    the metric is the headline of the runs and the file `figure.<format>` in the first directory. With `against` the
    axis is that hyperparameter, or that setting of the task, and the value the mean over the last tenth of the run,
    with `reference` minus that of the run with that label, paired by seed. Runs made for tuning favour the
    settings chosen by them: they are drawn with `against` or `tuning` only. `every` joins bins, as
    `launch.analysis.long_table.edges_every` reads it; every measurement within a joined bin has the same weight.
    Raises InputError.
    """
    runs = read(directories)
    path = target(directories if isinstance(directories, (str, Path)) else directories[0], out, format)
    if reference is not None and against is None:
        raise InputError("--reference: needs --against; launch.compare and launch.report compare whole runs")
    if against is None and not tuning:
        refuse_tuning(runs)
    chosen = checked_metrics(runs, metrics)
    if every is not None:
        runs = [coarser(run, edges_every(run, every)) for run in runs]
    found, joined = curves(runs), [every_text(every)] if every is not None else []
    if against is None:
        return figure.save(draw_curves(found, chosen, joined)[0], path)
    drawing, axes = figure.new_figure(len(chosen))
    for ax, metric in zip(axes, chosen, strict=True):
        figure.draw_against(ax, found, metric, against, reference)
    figure.legend_below(drawing, axes)
    figure.add_caption(drawing, " ".join([caption(runs, found), *joined, *tuned_on(runs)]))
    return figure.save(drawing, path)


def target(directory: Path | str, out: Path | str | None, format: str | None = None) -> Path:
    """Where the figure goes; the suffix and the format have to agree."""
    if format is not None and format not in figure.FORMATS:
        raise unknown("--format", format, figure.FORMATS)
    if out is None:
        return Path(directory) / f"figure.{format or 'png'}"
    suffix = Path(out).suffix.removeprefix(".")
    if suffix not in figure.FORMATS:
        raise InputError(f"--out: '{out}' does not end in one of {', '.join('.' + each for each in figure.FORMATS)}")
    if format not in (None, suffix):
        raise InputError(f"--out: '{out}' does not end in .{format} as --format={format} asks")
    if not Path(out).absolute().parent.is_dir():
        raise InputError(f"--out: no folder {Path(out).parent}")
    return Path(out)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `plot` brings none."""
    flags.DEFINE_list("metric", [], "Metrics to draw, one panel each.", flag_values=values)
    flags.DEFINE_enum("format", None, figure.FORMATS, "Default: that of --out, else png.", flag_values=values)
    flags.DEFINE_string(
        "against",
        None,
        "A swept number or a setting of the task as the axis, in place of the step.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "reference", None, "With --against: a label, to which the differences are drawn.", flag_values=values
    )
    flags.DEFINE_string("every", None, "Joins bins: 50tasks, or a number of steps.", flag_values=values)
    flags.DEFINE_bool("tuning", False, "Draw runs made for tuning all the same.", flag_values=values)
    flags.DEFINE_string("out", None, "Default: figure.<format> in the first folder.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: draws and prints where."""
    shown = {name: values[name].value for name in ("out", "format", "against", "tuning", "every", "reference")}
    print(plot(arguments, values.metric, **shown))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
