"""Workers and their parents killed and started again: the end has the same bytes as that of a sweep left alone."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.engine.scheduler import prepare
from tests.launch import tiny

ROOT = Path(__file__).parents[2]
LENGTH = {"steps": 20_000, "bin": 20_000, "chunk": 500}
COMMAND = [
    sys.executable, "-m", "launch.sweep", f"--task={tiny.TASK}(change_every=1000)", f"--network={tiny.NETWORK}",
    "--methods=backprop", "--seeds=5:8", *(f"--{name}={value}" for name, value in LENGTH.items()),
    "--lanes_per_batch=1", "--workers=2", "--checkpoint_every=500",
]  # fmt: skip


def started(root):
    """The command's process, in a group of its own, once two workers have begun; and the workers' ids."""
    process = subprocess.Popen(
        [*COMMAND, f"--workdir={root}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    began = time.monotonic()
    while True:
        told = {path.read_text() for path in root.glob("backprop/checkpoints/*/LOCK")}
        running = [number for text in told if text and tiny.alive(number := int(text.split()[1]))]
        if len(running) == 2:
            return process, running
        assert process.poll() is None and time.monotonic() - began < tiny.HANG, process.communicate()
        time.sleep(0.02)


def test_killed_workers_and_parents_started_again_come_to_the_same_end(tmp_path, record_property):
    asked = tiny.experiment(seeds=(5, 6, 7), lanes_per_batch=1, **LENGTH)
    asked = dataclasses.replace(asked, task=f"{tiny.TASK}(change_every=1000)", tuning=True)
    whole, killed = (tiny.launch_of(tmp_path / name, asked, policy=tiny.policy(10_000)) for name in ("whole", "killed"))
    prepare(whole)
    tiny.work(whole)

    process, _ = started(killed.root)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=tiny.HANG)[1] == "SIGINT: writing checkpoints; once more to end at once\n"
    assert process.returncode == 130

    process, running = started(killed.root)
    process.kill()
    process.communicate(timeout=tiny.HANG)
    tiny.wait_until(lambda: not any(tiny.alive(number) for number in running))

    process, running = started(killed.root)
    for number in running:
        os.kill(number, signal.SIGKILL)
    said = process.communicate(timeout=tiny.HANG)[1]
    wanted = r"error: --workers: 2 of 2 workers ended early, [23] units left; the same command goes on\n"
    assert re.fullmatch(wanted, said) and process.returncode == 2

    prepare(killed)
    tiny.work_with(killed, 1)
    equal = tiny.assert_same_ends(killed.root, whole.root)
    record_property("count", f"1 interrupt, 1 parent and 2 workers killed: {equal} arrays and leaves equal")
