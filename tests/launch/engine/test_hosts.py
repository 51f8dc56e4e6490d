"""Two processes that share batches come out as one does, also when they are stopped and go on; and what
is said where the flags do not fit together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from launch.engine import hosts
from launch.errors import InputError
from launch.train import define_flags, prepare_devices
from tests.launch import tiny

ROOT = Path(__file__).parents[3]
STEPS = 600
FLAGS = [
    "--methods=continual_backprop(replacement_rate=0.02,maturity_threshold=10)",
    "--network=mlp(widths=(12,))",
    "--seeds=1",
    "--bin=50",
    "--parallel=batch",
    "--checkpoint_every=50",
]


def flags_of(folder, workdir, steps):
    task = f"permuted_mnist(dataset=tiny,data_dir='{folder}',batch=8,change_every=200,probe_size=20,evaluation_size=10)"
    return [f"--task={task}", f"--workdir={workdir}", f"--steps={steps}", *FLAGS]


STOPPED = """
import os, runpy, signal, threading
from launch.engine import hosts, stopping

looks, told, highest, request = [], threading.Event(), hosts.highest, stopping.Stop.request

def look(value):
    looks.append(value)
    if len(looks) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(300)
    return highest(value)

def requested(stop, number):
    request(stop, number)
    told.set()

hosts.highest, stopping.Stop.request, stopping.GRACE_SECONDS = look, requested, 600
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""
"""A process that gets SIGTERM in the middle of the run."""


def started(folder, *arguments, command=tiny.TRAIN):
    environment = os.environ | {
        "NPROC": "8",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "PYTHONFAULTHANDLER": "1",
    }
    return subprocess.Popen(
        [*command, *arguments], env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def two(folder, workdir, steps, *commands):
    """Two processes that look at one folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    of = [*flags_of(folder, workdir, steps), *where]
    return [started(folder, *of, f"--process_id={i}", command=command) for i, command in enumerate(commands)]


def ended(processes, status=0):
    """All have ended, with that exit status; where one hangs, all are ended and say where they were."""
    deadline, hung = time.monotonic() + 2 * tiny.HANG, False
    for process in processes:
        if process.returncode is not None:
            continue
        try:
            out, error = process.communicate(timeout=max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            out, error = process.communicate()
            hung = True
        assert hung or process.returncode == status, (out[-1000:], error[-3000:])
    assert not hung, error[-5000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    tiny.write_images(folder)
    ended([started(folder, *flags_of(folder, folder / "one", STEPS))])
    return folder


def metrics(workdir):
    with np.load(workdir / "continual_backprop" / "metrics.npz") as file:
        return dict(file)


@pytest.mark.slow
def test_two_processes_come_out_as_one_also_when_one_is_told_to_stop_and_they_go_on(folder):
    workdir = folder / "two"
    ended(two(folder, workdir, STEPS, tiny.TRAIN, [sys.executable, "-c", STOPPED]), 143)
    assert 0 < max(int(path.name) for path in workdir.glob("*/checkpoints/*/[1-9]*")) < STEPS
    ended(two(folder, workdir, STEPS, tiny.TRAIN, tiny.TRAIN))
    one, both = metrics(folder / "one"), metrics(workdir)
    assert one.keys() == both.keys() and both["loss"].shape == (1, STEPS // 50) and np.isfinite(both["loss"]).all()
    for name, values in one.items():
        np.testing.assert_allclose(both[name][..., :4], values[..., :4], 1e-4, 1e-6, err_msg=name)


FIRST = ["--num_processes=2", "--process_id=0"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--process_id=1"], r"--process_id=1: needs --num_processes=N"),
        (["--coordinator_address=a:1"], r"--coordinator_address=a:1: needs --num_processes=N"),
        (["--num_processes=two"], r"--num_processes: 'two' is neither a number of processes from 1 on nor auto"),
        (
            ["--num_processes=2"],
            r"--num_processes=2: needs --process_id=I and --coordinator_address=HOST:PORT; --process_id is missing",
        ),
        (FIRST, r"--coordinator_address is missing"),
        (
            ["--num_processes=2", "--process_id=2", "--coordinator_address=a:1"],
            r"--process_id: 2 is not a number from 0 to 1",
        ),
        (
            ["--num_processes=2", "--process_id=0", "--coordinator_address=a"],
            r"--coordinator_address: 'a' is not of the form HOST:PORT",
        ),
        (["--num_processes=auto", "--process_id=0"], r"--process_id=0: --num_processes=auto finds that out by itself"),
        (["--num_processes=auto"], r"--num_processes=auto: no Slurm step, TPU pod or other cluster found"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(given, said, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM", "TPU", "OMPI"))]:
        monkeypatch.delenv(name)
    values = flags.FlagValues()
    define_flags(values)
    values(["train", *given])
    with pytest.raises(InputError, match=re.escape(said).replace(r"\ ", " ")) as error:
        prepare_devices(values)
    assert "\n" not in str(error.value)


def test_alone_nothing_is_asked_of_others():
    assert hosts.is_first()
    assert hosts.highest(3) == 3
    hosts.check_equal("checkpoints", [1])
