"""Scripts that run a command on a GPU, a node, a Slurm cluster or TPUs; see clusters.md beside this file."""

import shlex
from collections.abc import Sequence
from typing import Literal

from absl import flags

Machine = Literal["gpu", "node", "slurm", "tpu"]
BLOCKS = 4
"""Machines over which lanes are spread; a number to change in the script."""

_AGAIN = """status=0
{command} || status=$?
# 143: stopped before the time limit, checkpoints are written. The same command goes on.
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""
_LIMITS = """#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
"""


def given_flags(values: flags.FlagValues) -> list[str]:
    """The flags of a command line as they were given, but `--job_script`."""
    given = [values[name] for name in values if values[name].present and name != "job_script"]
    return [text for flag in given for text in flag.serialize().split("\n")]


def script(machine: Machine, given: Sequence[str], workdir: str, batch: bool) -> str:
    """A shell script that runs `python -m launch.train` with the flags `given`.

    Args:
        machine: where it will run.
        given: the command's flags.
        workdir: the run folder; blocks of lanes have `.blockI` added to it.
        batch: whether devices share batches, in place of lanes of their own.
    """
    if machine == "gpu":
        return _shell("# One GPU: lanes side by side, as many at a time as fit.", f"exec {_command(given)}")
    if machine == "node":
        return _shell("# All GPUs of this machine.", f"exec {_command(given)}")
    if machine == "slurm":
        return _slurm_batch(given) if batch else _slurm_blocks(given, workdir)
    return _tpu_batch(given) if batch else _tpu_blocks(given, workdir)


def _command(given: Sequence[str], *more: str) -> str:
    return " ".join(["python -m launch.train", *(shlex.quote(text) for text in given), *more])


def _shell(*lines: str) -> str:
    return "\n".join(["#!/bin/bash", *lines[:1], "set -euo pipefail", *lines[1:], ""])


def _apart(given: Sequence[str]) -> list[str]:
    """The flags without the run folder, of which every block has one of its own."""
    return [text for text in given if not text.startswith("--workdir=")]


def _join(given: Sequence[str], workdir: str) -> str:
    place = shlex.quote(workdir)
    return (
        f"# When all are over: mkdir -p {place} && cp -r {place}.block*/. {place}/\n"
        f"# and, which joins them: {_command(_apart(given), shlex.quote(f'--workdir={workdir}'))}"
    )


def _slurm_blocks(given: Sequence[str], workdir: str) -> str:
    place = shlex.quote(f"--workdir={workdir}")
    command = "srun " + _command(_apart(given), place, f'--block="$SLURM_ARRAY_TASK_ID"/{BLOCKS}')
    return (
        "#!/bin/bash\n"
        f"# One GPU for each of {BLOCKS} blocks of lanes, in one folder; change both numbers for more.\n"
        f"#SBATCH --array=0-{BLOCKS - 1}\n#SBATCH --ntasks=1\n#SBATCH --gpus-per-task=1\n#SBATCH --cpus-per-task=4\n"
        f"{_LIMITS}{_AGAIN.format(command=command)}"
    )


def _slurm_batch(given: Sequence[str]) -> str:
    return (
        "#!/bin/bash\n"
        "# Every batch over the 16 GPUs of two nodes, one process a GPU.\n"
        "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8\n#SBATCH --cpus-per-task=4\n"
        f"{_LIMITS}{_AGAIN.format(command='srun ' + _command(given, '--num_processes=auto'))}"
    )


def _on_tpu(name: str, worker: str, command: str) -> str:
    return (
        f'gcloud compute tpus tpu-vm ssh {name} --zone="$ZONE" --worker={worker} '
        f"--command={shlex.quote(f'cd plastic_jax && exec {command}')}"
    )


def _tpu_batch(given: Sequence[str]) -> str:
    return _shell(
        "# Every batch over all chips of a pod slice. The workers share the folder of the results.",
        _on_tpu('"$TPU_NAME"', "all", _command(given, "--num_processes=auto")),
    )


def _tpu_blocks(given: Sequence[str], workdir: str) -> str:
    place = [_command(_apart(given), f"{shlex.quote(f'--workdir={workdir}.block{i}')}", f"--block={i}/{BLOCKS}")
             for i in range(BLOCKS)]  # fmt: skip
    lines = [_on_tpu(f'"$TPU_NAME-{i}"', "0", command) + " &" for i, command in enumerate(place)]
    return _shell(
        f"# A block of lanes for each of {BLOCKS} TPU machines of a single host, all chips of which it uses.",
        *lines,
        "wait",
        _join(given, workdir),
    )
