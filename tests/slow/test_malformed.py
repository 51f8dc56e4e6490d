"""Malformed command lines and grid files, through all that a command does with them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from launch import cli, train
from launch.config.grid import read_grid
from tests.launch.malformed import COMMANDS, GRIDS

ROOT = Path(__file__).parents[2]
REAL = range(0, len(COMMANDS), -(-len(COMMANDS) // 5))


def refused(said, words):
    """One line of stderr, with the words."""
    return said.startswith("error: ") and said.count("\n") == 1 and all(word in said for word in words)


def test_a_hundred_and_more_are_one_line_and_status_2_and_leave_nothing(tmp_path, monkeypatch, capsys, record_property):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.engine.scheduler.run", lambda *_, **__: pytest.fail("something was run"))
    for arguments, words in COMMANDS:
        values = flags.FlagValues()
        train.define_flags(values)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.setattr(flags, "FLAGS", values)
            cli._guarded(lambda rest, v=values: train.main(rest, v), cli._parse(["train", "--workdir=new", *arguments]))
        out, said = capsys.readouterr()
        assert (left.value.code, out, refused(said, words)) == (2, "", True), (arguments, said)
        assert list(tmp_path.iterdir()) == [], arguments
    for i, (name, text, words) in enumerate(GRIDS):
        path = tmp_path / str(i) / name
        path.parent.mkdir()
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SystemExit) as left:
            cli._guarded(lambda _, p=path: read_grid(p) and 0, ["sweep"])
        out, said = capsys.readouterr()
        assert (left.value.code, out, refused(said, words)) == (2, "", True), (text, said)
        assert [each.name for each in path.parent.iterdir()] == [name]
    assert len(COMMANDS) + len(GRIDS) >= 100
    record_property("count", f"{len(COMMANDS)} command lines and {len(GRIDS)} grid files refused in one line each")


@pytest.mark.parametrize("number", REAL)
def test_some_of_them_as_real_processes(number, tmp_path):
    arguments, words = COMMANDS[number]
    command = [sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'new'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert refused(done.stderr, words), done.stderr
    assert not re.search("Traceback", done.stderr) and list(tmp_path.iterdir()) == []
