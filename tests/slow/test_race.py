"""Two launches on the same folder at the same moment share its units; whoever ends first says that others run."""

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


def test_two_launches_at_once_share_one_run(tmp_path, record_property):
    alone = started(tmp_path / "whole")
    assert alone.communicate(timeout=600)[1] == "" and alone.returncode == 0
    line = r"error: --workers: others are still running, [12] units? left; the same command goes on\n"
    left = 0
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        both = [started(folder) for _ in range(2)]
        said = [process.communicate(timeout=600)[1] for process in both]
        statuses = [process.returncode for process in both]
        assert 0 in statuses, said
        for status, text in zip(statuses, said, strict=True):
            assert (status, text) == (0, "") or (status == 2 and re.fullmatch(line, text)), text
        left += 2 in statuses
        tiny.assert_same_ends(folder, tmp_path / "whole")
    record_property("count", f"{ROUNDS} races, in {left} one ended while the other ran; all equal")
