"""Two launches on the same folder at the same moment: one runs, the other says who does."""

import re
import subprocess
import sys
from pathlib import Path

from tests.launch import tiny

ROOT = Path(__file__).parents[2]
ROUNDS = 10
COMMAND = [
    sys.executable, "-m", "launch.train", f"--task={tiny.TASK}", f"--network={tiny.NETWORK}", "--change_every=1000",
    "--bin=1000", "--chunk=1000", "--methods=backprop", "--seeds=3", "--lanes_per_batch=2", "--workers=1",
    "--steps=60000", "--checkpoint_every=1000",
]  # fmt: skip


def started(folder):
    command = [*COMMAND, f"--workdir={folder}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_two_launches_at_once_are_one_run_and_one_line(tmp_path, record_property):
    alone = started(tmp_path / "whole")
    assert alone.communicate(timeout=600)[1] == "" and alone.returncode == 0
    late = 0
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        both = [started(folder) for _ in range(2)]
        said = [process.communicate(timeout=600)[1] for process in both]
        statuses = [process.returncode for process in both]
        if statuses == [0, 0]:  # the second came after the first had ended
            late += 1
        else:
            assert sorted(statuses) == [0, 2], said
            winner, line = both[statuses.index(0)], said[statuses.index(2)]
            wanted = (
                rf"error: {re.escape(str(folder))}/backprop/checkpoints(/\w+)?: being run by process "
                rf"{winner.pid} on \S+\n"
            )
            assert re.fullmatch(wanted, line), line
            assert said[statuses.index(0)] == ""
        tiny.assert_same_ends(folder, tmp_path / "whole")
    assert late <= ROUNDS // 2
    record_property("count", f"{ROUNDS} races, {ROUNDS - late} refused in one line, {late} came late; all equal")
