"""The scripts of `--job_script`: those in clusters.md are what the code prints, are shell, and run a valid command."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from absl import flags

from launch import train
from launch.config import scripts

TEXT = (Path(train.__file__).parent / "clusters.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```sh\n(.*?)\n```\n\n```bash\n(.*?)```", TEXT, re.DOTALL)
SLURM = {"SLURM_ARRAY_TASK_ID": "2"}


def values_of(arguments):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return values


def commands(script, depth=0):
    """The arguments of every `python -m launch.train` in a script, as its shell would pass them."""
    found = []
    for line in script.splitlines():
        for name, value in SLURM.items():
            line = line.replace(f'"${name}"', value)
        words = shlex.split(line, comments=True)
        found += [commands(word.removeprefix("--command="), 1)[0] for word in words if word.startswith("--command=")]
        if "launch.train" in words and not line.startswith("gcloud"):
            after = words[words.index("launch.train") + 1 :]
            found.append(after[: after.index("||")] if "||" in after else after)
    return found


def test_every_block_of_the_page_is_shown_with_its_command():
    assert TEXT.count("```") == 4 * len(SHOWN)
    assert {command.rpartition("=")[2] for command, _ in SHOWN} == {"gpu", "node", "slurm", "tpu"}


@pytest.mark.parametrize(("command", "script"), SHOWN)
def test_the_page_shows_what_is_printed(command, script, monkeypatch, capsys):
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "-m", "launch.train"]
    # The task's data are not needed to write a script.
    monkeypatch.setattr("tasks.permuted_mnist.PermutedMNIST.spec", property(lambda task: None))
    assert train.main([], values_of(arguments[3:])) == 0
    assert capsys.readouterr().out == script


@pytest.mark.parametrize("script", [script for _, script in SHOWN])
def test_scripts_are_shell(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("command", "script"), SHOWN)
def test_scripts_run_the_command_that_was_given(command, script):
    given = values_of(shlex.split(command)[3:])
    found = [values_of(arguments) for arguments in commands(script)]
    assert found
    for values in found:
        train.run_settings(values)
        assert not values.job_script
        for name in ("task", "methods", "seeds", "parallel"):
            assert values[name].value == given[name].value
    blocks = [values.block for values in found if values.block]
    if "slurm" in command and given.parallel != "batch":
        assert blocks == [f"2/{scripts.BLOCKS}"] and f"--array=0-{scripts.BLOCKS - 1}\n" in script
        assert [values.workdir for values in found] == [given.workdir]
    if "tpu" in command and blocks:
        assert blocks == [f"{i}/{scripts.BLOCKS}" for i in range(scripts.BLOCKS)]
        assert [values.workdir for values in found] == [f"{given.workdir}.block{i}" for i in range(scripts.BLOCKS)]


def test_slurm_scripts_stop_before_the_limit_and_go_on():
    for command, script in SHOWN:
        if "slurm" in command:
            assert "#SBATCH --signal=TERM@60\n" in script and "#SBATCH --requeue\n" in script
            # The shell's part: a status of 143 puts the job into the queue again, and is passed on.
            fake = 'srun() { return 143; }; scontrol() { echo "$@"; }; SLURM_JOB_ID=7; SLURM_ARRAY_TASK_ID=2\n'
            done = subprocess.run(["bash", "-c", fake + script], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (143, "requeue 7\n")
            done = subprocess.run(["bash", "-c", fake.replace("143", "2") + script], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (2, "")


def test_values_with_blanks_and_quotes_arrive_whole():
    given = ["--task=a(b='c d')", '--methods=x("y")', "--sweep=a=1,2", "--sweep=b=3", "--workdir=my runs"]
    for machine in ("gpu", "node", "slurm", "tpu"):
        for batch in (False, True):
            text = scripts.script(machine, scripts.given_flags(values_of(given)), "my runs", batch)
            for arguments in commands(text):
                values = values_of(arguments)
                assert (values.task, values.methods, values.sweep) == ("a(b='c d')", 'x("y")', ["a=1,2", "b=3"])
                assert values.workdir.startswith("my runs")
