r"""python -m launch.train: run methods on a task, many seeds at once, and keep what was measured.

    python -m launch.train --task=slowly_changing_regression --methods=backprop,continual_backprop \
        --seeds=30 --steps=1000000 --workdir=runs/first

Every flag is a field of `launch.Experiment`; `launch.run(experiment)` does the same from Python.
"""

# JAX takes seconds to import, and a list is printed without it: what needs it is imported where it is used.
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from tqdm import tqdm

from launch.cli import refuse_arguments, run_cli
from launch.config import describe, scripts
from launch.config.experiment import Plan, resolve
from launch.config.flags import NETWORK_SETTINGS, TASK_SETTINGS, define_flags, from_flags
from launch.config.syntax import parse_every, parse_keep, parse_step
from launch.engine.stopping import listening
from launch.errors import unknown

if TYPE_CHECKING:
    from launch.storage.run_folder import Run

__all__ = ["NETWORK_SETTINGS", "TASK_SETTINGS", "define_flags", "from_flags", "main"]


def run_settings(values: flags.FlagValues) -> dict[str, Any]:
    """The arguments of `launch.run` that those flags give.

    Raises:
        InputError: a flag is not of its form.
    """
    from launch.engine.checkpoint_policy import CheckpointPolicy
    from launch.engine.scheduler import ALL, parse_block

    policy = CheckpointPolicy(
        parse_every("--checkpoint_every", values.checkpoint_every),
        parse_keep("--keep", values.keep),
        tuple(parse_step("--checkpoint_at", text) for text in values.checkpoint_at),
    )
    return {
        "resume": values.resume,
        "policy": policy,
        "devices": values.devices,
        "parallel": values.parallel,
        "block": parse_block(values.block) if values.block else ALL,
    }


def prepare_devices(values: flags.FlagValues) -> None:
    """What JAX has to be told before it looks for devices.

    Raises:
        InputError: the other processes cannot be found.
    """
    import jax

    from launch.engine.hosts import join
    from launch.engine.resume import DETERMINISTIC

    if values.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if (
        values.devices
        and values.devices > 1
        and values.num_processes is None
        and "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
    ):
        jax.config.update("jax_num_cpu_devices", values.devices)
    join(values.num_processes, values.process_id, values.coordinator_address)


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> int:
    """The command; returns its exit status."""
    refuse_arguments(arguments)
    if values.list:
        print(describe.everything())
        return 0
    if values.explain:
        print(describe.explain(values.explain))
        return 0
    return _train(values)


def _train(values: flags.FlagValues) -> int:
    from launch.engine.dry_run import all_warnings, dry_run
    from launch.engine.hosts import is_first
    from launch.engine.scheduler import run
    from launch.engine.sinks import check_sinks, sending

    settings = run_settings(values)
    if values.job_script:
        workdir = values.workdir or f"runs/{resolve(from_flags(values)).spec.name}"
        batch = values.parallel == "batch"
        print(scripts.script(values.job_script, scripts.given_flags(values), workdir, batch), end="")
        return 0
    prepare_devices(values)
    experiment = from_flags(values)
    plan = resolve(experiment)
    check_metrics(plan, values.metric)
    if plan.chosen and not values.dry_run:
        sizes = ", ".join(f"{name}={value}" for name, value in plan.chosen.items())
        print("sizes not asked for, chosen to fit:", sizes, file=sys.stderr)
    for line in all_warnings(plan):
        print("warning:", line, file=sys.stderr)
    if values.dry_run:
        print(dry_run(plan))
        return 0
    workdir = Path(values.workdir or f"runs/{plan.spec.name}")
    if values.log:
        check_sinks(values.log)
    total = sum(len(job.lanes) for job in plan.jobs) * (plan.steps - plan.start)
    kept = {job.label: plan.settings(job) for job in plan.jobs}
    with (
        sending(values.log if is_first() else [], workdir, kept) as log,
        progress_bar(total) as report,
        listening() as stop,
    ):
        runs = run(experiment, workdir, values.workers, report, stop=stop, log=log, **settings)
    if not is_first():
        return 0
    if len(runs) < len(plan.jobs):
        print(
            f"the units of --block={values.block} are over; copy all blocks' folders into one, and run without --block"
        )
        return 0
    # pandas and figures take a second to import, which lists and refusals do without.
    from launch.plot import plot
    from launch.table import table

    print(table(list(runs.values()), values.metric))
    print(f"figure: {plot([workdir], metrics=values.metric or None)}")
    _tell_lost(runs)
    return 0


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator:
    """`report(label, lane_steps)` that moves a bar with lane-steps per second and time left; quiet off a terminal."""
    with tqdm(total=total, unit="step", unit_scale=True, disable=not sys.stderr.isatty(), file=sys.stderr) as bar:

        def report(label: str, lane_steps: int) -> None:
            bar.set_postfix_str(label, refresh=False)
            bar.update(lane_steps)

        yield report


def _tell_lost(runs: "dict[str, Run]") -> None:
    """Say where the replacement log was too small."""
    for label, one in runs.items():
        lost = 0 if one.lives is None else int(one.lives["lost"].max())
        if lost:
            kept = one.meta["settings"].get("log_size")
            print(
                f"warning: {label}: --history={kept} is {lost} replacements too short; the latest are kept",
                file=sys.stderr,
            )


def check_metrics(plan: Plan, metrics: list[str]) -> None:
    """Refuse, before anything runs, a metric that will not be measured."""
    from launch.engine.build import metric_names

    measured = {name for job in plan.jobs for name in metric_names(plan, job)} if metrics else set()
    for name in metrics:
        if name not in measured:
            raise unknown("--metric", name, measured)


def _command(arguments: list[str]) -> int:
    """`main`, with compiled programs kept for the next time."""
    if not (flags.FLAGS.list or flags.FLAGS.explain):
        from launch.engine.processes import enable_compilation_cache

        enable_compilation_cache()
    return main(arguments)


if __name__ == "__main__":
    # Small programs lose more to XLA's thread pool than they gain; cores are used by worker processes.
    os.environ.setdefault("NPROC", "1")
    define_flags()
    flags.adopt_module_key_flags(sys.modules[define_flags.__module__])  # --help shows the key flags of this module
    run_cli(_command)
