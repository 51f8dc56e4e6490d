"""Draw run folders as one figure, several folders on one axis.

python -m launch.plot DIR... [--metric=squared_error,dormant_units] [--interval=bootstrap|se] [--format=png] [--out=F]
    [--every=50tasks|STEPS] [--against=step_size] [--tuning]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.analysis.by_task import coarser, edges_every, every_text
from launch.analysis.selection import refuse_tuning
from launch.analysis.statistics import INTERVALS
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.figures import figure
from launch.figures.curves import caption, checked_metrics, curves
from launch.storage.run_folder import Run, read_runs


def plot(
    directories: Sequence[Path | str] | Path | str,
    metrics: Sequence[str] | None = None,
    interval: str = "bootstrap",
    out: Path | str | None = None,
    format: str | None = None,
    against: str | None = None,
    tuning: bool = False,
    every: str | None = None,
) -> Path:
    """Draw every run in `directories` (run folders or single runs), one panel per metric; returns the figure's path.

    The settings that differ between the runs are named in the legend, those that are equal in the caption. By default
    the metric is the headline of the runs and the file `figure.<format>` in the first directory. With `against` the
    axis is that hyperparameter and the value the mean over the last tenth of the run. Runs made for tuning favour the
    settings chosen by them: they are drawn with `against` or `tuning` only. `every` joins bins, as
    `launch.analysis.by_task.edges_every` reads it; every measurement within a joined bin has the same weight.
    Raises InputError.
    """
    directories = [directories] if isinstance(directories, (str, Path)) else list(directories)
    if not directories:
        raise InputError("launch.plot: no run folder given; usage: python -m launch.plot DIR...")
    if interval not in INTERVALS:
        raise unknown("--interval", interval, INTERVALS)
    path = target(directories[0], out, format)
    runs = [run for directory in directories for run in read_runs(directory).values()]
    if against is None and not tuning:
        refuse_tuning(runs)
    chosen = checked_metrics(runs, metrics)
    if every is not None:
        runs = [coarser(run, edges_every(run, every)) for run in runs]
    drawing, axes = figure.new_figure(len(chosen))
    found = curves(runs)
    for ax, metric in zip(axes, chosen, strict=True):
        if against is None:
            figure.draw_metric(ax, found, metric, interval)
        else:
            figure.draw_against(ax, found, metric, against, interval)
    figure.legend_below(drawing, axes)
    joined = [every_text(every)] if every is not None else []
    figure.add_caption(drawing, " ".join([caption(runs, interval), *joined, *_tuned_on(runs)]))
    return figure.save(drawing, path)


def _tuned_on(runs: Sequence[Run]) -> list[str]:
    """Where the numbers of the runs come from, a sentence for each answer."""
    return [f"Tuned on {text}." for text in dict.fromkeys(run.meta.get("tuned_on") for run in runs) if text]


def target(directory: Path | str, out: Path | str | None, format: str | None) -> Path:
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
    flags.DEFINE_enum("interval", "bootstrap", INTERVALS, "95% interval of the mean over seeds.", flag_values=values)
    flags.DEFINE_enum("format", None, figure.FORMATS, "Default: that of --out, else png.", flag_values=values)
    flags.DEFINE_string("against", None, "A swept number as the axis, in place of the step.", flag_values=values)
    flags.DEFINE_string("every", None, "Joins bins: 50tasks, or a number of steps.", flag_values=values)
    flags.DEFINE_bool("tuning", False, "Draw runs made for tuning all the same.", flag_values=values)
    flags.DEFINE_string("out", None, "Default: figure.<format> in the first folder.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: draws and prints where."""
    shown = {name: values[name].value for name in ("interval", "out", "format", "against", "tuning", "every")}
    print(plot(arguments, values.metric, **shown))


if __name__ == "__main__":
    define_flags()
    run_cli(main)
