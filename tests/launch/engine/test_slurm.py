"""Workers as jobs: what would be sent to Slurm, what is said where it is not there, and jobs of this machine."""

import importlib.util
import json
import os
import sys

import pytest

from launch import sweep as command
from launch.engine import slurm
from launch.engine.scheduler import labels_of, prepare
from launch.engine.sweep_folder import SWEEP, status
from launch.errors import InputError
from tests.launch import tiny
from tests.launch.test_sweep import grid, sweep

needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="JOBS OF A CLUSTER NOT TESTED: package 'submitit' is not installed (extra slurm)",
)


def made(root):
    asked = tiny.experiment(seeds=tuple(range(5, 11)), lanes_per_batch=1)
    made = tiny.launch_of(root, asked)
    prepare(made)
    return made


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs that look like Slurm's: `sbatch` keeps the script that it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"sbatch": f'cp "$1" {tmp_path}/sent.sh\necho Submitted batch job 4242\n', "srun": "", "squeue": ""}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@needs_submitit
def test_what_is_sent_to_slurm(cluster, capsys):
    runs = cluster / "runs"
    given = "--slurm=timeout_min=600,slurm_partition=gpu,gpus_per_node=1,slurm_mem=8GB"
    assert sweep(grid(cluster), f"--workdir={runs}", "--submit=slurm", "--workers=3", given) == 0
    said = capsys.readouterr().out
    assert said == f"3 jobs: 4242_0, 4242_1, 4242_2\nlogs: {runs / 'jobs'}\n"
    sent = (cluster / "sent.sh").read_text()
    for line in (
        "#SBATCH --array=0-2%3", "#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=1", "#SBATCH --time=600",
        "#SBATCH --mem=8GB", "#SBATCH --job-name=runs", "#SBATCH --signal=USR2@90",
    ):  # fmt: skip
        assert line in sent.splitlines(), line
    assert f"{sys.executable} -u -m submitit.core._submit {runs / 'jobs'}" in sent
    # Workers find all that they need in the folder, and no two disagree.
    assert len(json.loads((runs / SWEEP).read_text())["units"]) == 4 and (runs / "l2" / "run.json").is_file()


@needs_submitit
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--submit=slurm"], "--submit=slurm: Could not detect"),
        (["--submit=local", "--slurm=slurm_partitio=gpu"], "Unknown argument 'partitio' for executor 'slurm'"),
        (["--submit=local", "--slurm=timeout_min=long"], 'Parameter "timeout_min" expected type'),
        (["--submit=local", "--slurm=gpus"], "--slurm: 'gpus' is not of the form NAME=VALUE"),
    ],
)
def test_what_cannot_be_sent_is_one_line_and_nothing_is_prepared(tmp_path, monkeypatch, given, words):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    with pytest.raises(InputError) as error:
        sweep(grid(tmp_path), f"--workdir={tmp_path / 'runs'}", *given)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_without_submitit_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"^--submit: submitit is not installed; pip install -e"):
        sweep(grid(tmp_path), f"--workdir={tmp_path / 'runs'}", "--submit=local")
    assert not (tmp_path / "runs").exists()
    assert command.WHERE == ("here", "slurm", "local")


@needs_submitit
def test_two_jobs_of_this_machine_share_a_sweep_and_end_as_one_process_does(tmp_path, monkeypatch):
    submitit = slurm._submitit()
    monkeypatch.setenv("NPROC", "1")
    alone, shared = made(tmp_path / "alone"), made(tmp_path / "shared")
    tiny.work(alone)
    jobs = []
    really = submitit.AutoExecutor.submit
    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda *given: jobs.append(really(*given)) or jobs[-1])
    sender = slurm.executor(shared.root, "local", ["timeout_min=5"])
    assert slurm.submit(sender, shared, 2).startswith("2 jobs: ")
    numbers = [job.result() for job in jobs]
    assert sum(numbers) == 6 and tiny.units_left(shared) == 0, numbers
    assert status(labels_of(shared)).endswith("all units are over")
    tiny.assert_same_ends(shared.root, alone.root)
    tiny.work_with(shared, 2)
    # A job that is out of time is sent again as it was.
    assert slurm.Worker(shared).checkpoint().function.sweep == shared
