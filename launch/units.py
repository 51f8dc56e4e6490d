"""Draw and tabulate unit biographies: how long units live, when they become useful, which are soon replaced again.

python -m launch.units DIR... [--groups=Dense_0,Dense_1] [--soon=STEPS] [--format=png] [--out=F]

The runs must have been made with `launch.train --history=N`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from launch.analysis.lives import Lifetimes, group_names, lifetimes, survival, time_to_usefulness, useful_share
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.figures import figure
from launch.figures.curves import INK, Curve, caption, curves
from launch.storage.run_folder import read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_GROUPS = 6
HEAD = (
    "| method | group | units | replacements | lost | median life | useful after | soon replaced again |",
    "|---|---|---|---|---|---|---|---|",
)
EXPLAINED = (
    "replacements: kept per seed, and lost per seed, of all groups, where the history was too short. median life: "
    "steps, after Kaplan and Meier; units still there at the end are censored. useful after: the age in steps at which "
    "half of the new units still there are above their group's median in what the method ranks by. soon replaced "
    "again: share of the new units (of how many) that are replaced within the given steps, and its 95 % interval."
)


def units(
    directories: Sequence[Path | str] | Path | str,
    groups: Sequence[str] | None = None,
    out: Path | str | None = None,
    format: str | None = None,
) -> Path:
    """Draw survival and usefulness by age, two panels a group; returns the figure's path.

    By default all groups, at most six of them evenly chosen, into `units.<format>` in the first directory. Raises
    InputError.
    """
    directories = [directories] if isinstance(directories, (str, Path)) else list(directories)
    found = with_history(directories)
    if out is not None and format is not None:
        raise InputError(f"--format={format}: --out={out} already says it by its ending; give one of them")
    path = Path(directories[0]) / f"units.{format or 'png'}" if out is None else Path(out)
    chosen = _chosen(found, groups, MOST_GROUPS)
    rows, columns = (1, 2) if len(chosen) == 1 else (2, len(chosen))
    drawing, (whole,) = figure.new_figure(1, width=3.6 * columns, height=2.9 * rows)
    whole.remove()
    for place, group in enumerate(chosen):
        upper, lower = (drawing.add_subplot(rows, columns, 1 + place + i * len(chosen)) for i in (0, 1))
        for ax in (upper, lower):
            figure.bare(ax)
            ax.set_title(group, fontsize=10, color=INK)
        _draw_survival(upper, found, group)
        _draw_usefulness(lower, found, group)
    panels = drawing.axes
    figure.legend_below(drawing, panels)
    total = len(_chosen(found, None, None))
    some = "" if len(chosen) == total else f" {len(chosen)} of {total} groups."
    figure.add_caption(drawing, caption([c.run for c in found]) + some)
    return figure.save(drawing, path)


def table(found: Sequence[Curve], groups: Sequence[str] | None = None, soon: int | None = None) -> str:
    """Markdown: a row per curve and group; `soon` in steps, by default twice the method's protection of new units."""
    lines = list(HEAD)
    for curve in found:
        names = group_names(curve.run.lives or {})
        lines += [_row(curve, group, soon) for group in names if groups is None or group in groups]
    return "\n".join(lines)


def with_history(directories: Sequence[Path | str]) -> list[Curve]:
    """The curves of all runs that have unit biographies.

    Raises:
        InputError: there is no such run.
    """
    if not directories:
        raise InputError("launch.units: no run folder given; usage: python -m launch.units DIR...")
    runs = [run for directory in directories for run in read_runs(directory).values()]
    told = [run for run in runs if run.lives is not None]
    if not told:
        labels = ", ".join(run.label for run in runs)
        raise InputError(
            f"{', '.join(map(str, directories))}: no unit biographies (lives.npz) in {labels}; run launch.train with "
            "--history=N and a method that replaces units"
        )
    return curves(told)


def _chosen(found: Sequence[Curve], groups: Sequence[str] | None, most: int | None) -> list[str]:
    there = list(dict.fromkeys(name for curve in found for name in group_names(curve.run.lives or {})))
    for name in groups or ():
        if name not in there:
            raise unknown("--groups", name, there)
    if groups:
        return list(groups)
    if most is None or len(there) <= most:
        return there
    return [there[round(i)] for i in np.linspace(0, len(there) - 1, most)]


def _row(curve: Curve, group: str, soon: int | None) -> str:
    run, lives = curve.run, lifetimes(curve.run, curve.lanes, group)
    assert run.lives is not None, "only runs with a history are asked"
    seeds = len(curve.lanes)
    number = list(map(str, run.lives["groups"])).index(group)
    of_group = np.isin(run.lives["lane"], curve.lanes) & (run.lives["group"] == number)
    cells = (
        f"{curve.name} ({curve.note})",
        group,
        str(int(run.lives["widths"][number])),
        f"{of_group.sum() / seeds:.4g}",
        f"{run.lives['lost'][curve.lanes].mean():.4g}",
        _median_text(lives),
        _useful_text(*time_to_usefulness(*useful_share(run, curve.lanes, group))),
        _soon_text(lives, _protection(curve) if soon is None else soon),
    )
    return f"| {' | '.join(cells)} |"


def _median_text(lives: Lifetimes) -> str:
    found = survival(lives)
    median = found.median()
    return f"{median:.0f}" if math.isfinite(median) else f"> {found.longest:.0f}"


def _useful_text(age: float, after_others: bool) -> str:
    if not math.isfinite(age):
        return "never seen"
    return f"{age:.0f}" if after_others else f"<= {age:.0f}"


def _soon_text(lives: Lifetimes, soon: int | None) -> str:
    if soon is None:
        return "give --soon"
    again = Lifetimes(*(part[~lives.first] for part in lives))
    share, low, high = survival(again).at(soon)
    if not len(again.exit) or not math.isfinite(share):
        return f"none seen for {soon} steps"
    ends = f" [{100 * (1 - high):.3g}, {100 * (1 - low):.3g}]" if math.isfinite(low) else ""
    seen = np.count_nonzero(again.exit > again.entry)
    return f"{100 * (1 - share):.3g} % of {seen}{ends} within {soon}"


def _protection(curve: Curve) -> int | None:
    """Twice the steps in which a new unit cannot go: the maturity threshold, or the period between two resets."""
    settings = {**curve.run.meta["settings"], **curve.run.lanes[curve.lanes[0]]["hyper"]}
    steps = settings.get("maturity_threshold", settings.get("period"))
    return None if steps is None else int(2 * steps)


def _draw_survival(ax: "Axes", found: Sequence[Curve], group: str) -> None:
    for curve in found:
        if group in group_names(curve.run.lives or {}):
            seen = survival(lifetimes(curve.run, curve.lanes, group))
            start = 0.7 * seen.age[0] if len(seen.age) else 1.0
            age = np.concatenate([[start], seen.age, [seen.longest]])
            share, low, high = (
                np.concatenate([[1.0], part, part[-1:] if len(part) else [1.0]])
                for part in (seen.share, seen.low, seen.high)
            )
            look = {"color": curve.colour, "linestyle": curve.line, "linewidth": 1.6}
            ax.step(age, 100 * share, where="post", label=f"{curve.name} ({curve.note})", **look)
            ax.fill_between(age, 100 * low, 100 * high, step="post", color=curve.colour, alpha=0.18, linewidth=0)
    _age_axis(ax, "still there (%)")


def _draw_usefulness(ax: "Axes", found: Sequence[Curve], group: str) -> None:
    for curve in found:
        if group in group_names(curve.run.lives or {}):
            ages, share = useful_share(curve.run, curve.lanes, group)
            known = np.isfinite(share)
            ax.plot(ages[known], 100 * share[known], color=curve.colour, linestyle=curve.line, marker="o", markersize=3)
    if not any(np.isfinite(line.get_ydata()).any() for line in ax.get_lines()):
        ax.text(0.5, 0.55, "too few seen", transform=ax.transAxes, ha="center", fontsize=9, color=INK)
        ax.set_xlim(1, 10)
    ax.axhline(50, color=figure.GREY, linewidth=0.8, zorder=0)
    _age_axis(ax, "above the median utility (%)")


def _age_axis(ax: "Axes", label: str) -> None:
    ax.set_xscale("log")
    ax.set_ylim(0, 102)
    ax.set_xlabel("age (steps)", fontsize=10, color=INK)
    ax.set_ylabel(label, fontsize=10, color=INK)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `units` brings none."""
    flags.DEFINE_list("groups", [], "Groups of units to show; default: all, six of them drawn.", flag_values=values)
    flags.DEFINE_integer(
        "soon",
        None,
        "Steps that count as replaced again soon; default: twice the maturity threshold (ReDo: twice the period).",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum("format", None, figure.FORMATS, "Default: that of --out, else png.", flag_values=values)
    flags.DEFINE_string("out", None, "Default: units.<format> in the first folder.", flag_values=values)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: prints the table, draws, and prints where."""
    groups = values.groups or None
    found = with_history(arguments)
    path = units(arguments, groups, values.out, values.format)
    print(table(found, groups, values.soon))
    print(EXPLAINED)
    print(f"figure: {path}")


if __name__ == "__main__":
    define_flags()
    run_cli(main)
