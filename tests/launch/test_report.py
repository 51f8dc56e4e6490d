"""The report: the parts that a folder has something for, files that hold them, a run under way, what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from launch import report as command
from launch.analysis.comparison import mean_table
from launch.analysis.curves import caption, curves, read
from launch.errors import InputError
from launch.export import export
from launch.plot import plot
from launch.report import PARTS, Options, part, report
from launch.storage.run_folder import read_runs
from tests.launch import test_compare, tiny
from tests.launch.analysis import test_increments, test_replacements, test_returns, test_tasks

STEADY, DECLINING = test_tasks.STEADY, test_tasks.DECLINING


@pytest.fixture
def stream(tmp_path):
    """A stream of tasks in which backprop declines."""
    folder = tmp_path / "stream"
    for label, values in (("backprop", DECLINING), ("fresh_network", STEADY)):
        test_tasks.write(folder, label, [values, values + 0.01])
    return folder


def there(folder):
    runs = list(read_runs(folder).values())
    return [name for name, (is_there, _) in PARTS.items() if is_there(runs)]


def test_a_folder_has_the_parts_it_has_something_for(stream, tmp_path):
    assert there(stream) == ["curves", "tasks"]
    test_increments.write(tmp_path / "classes", "l2", test_increments.LOST)
    assert there(tmp_path / "classes") == ["curves", "increments"]
    test_returns.write(tmp_path / "agents", "standard", [[1.0, 2.0]])
    assert there(tmp_path / "agents") == ["curves", "returns"]
    test_replacements.write(tmp_path / "log", lives=test_replacements.lives())
    assert there(tmp_path / "log") == ["curves", "replacements"]
    hypers = ({"step_size": 0.1}, {"step_size": 0.2})
    test_tasks.write(tmp_path / "tuning", "l2", [STEADY] * 4, hypers=hypers, tuning=True)
    assert there(tmp_path / "tuning") == ["tasks", "sensitivity"]


def test_the_report_holds_verdict_tables_and_figures(stream):
    verdicts, paths = report(stream)
    assert len(verdicts) == 1 and verdicts[0].startswith("Loss of plasticity shown: backprop minus fresh network")
    assert [path.name for path in paths] == ["report_curves.png", "report_tasks.png", "report.md", "report.html"]
    text, page = (stream / "report.md").read_text(), (stream / "report.html").read_text()
    for words in (*verdicts, "median updates", "drop from peak", "finished"):
        assert words in text and words in page.replace("&#x27;", "'")
    assert "![tasks](report_tasks.png)" in text and page.count("<img") == page.count("data:image/png;base64") == 2
    assert text.index(verdicts[0]) < text.index("## Curves") < text.index("## Tasks")


def test_a_text_stream_is_told_by_period_before_and_after_learning_it(tmp_path):
    at = lambda place, values: np.where(np.arange(4) == place, values, np.nan).reshape(2, -1)  # noqa: E731
    for label, values in (("backprop", DECLINING), ("fresh_network", STEADY)):
        bits = 3 - np.array([values, values + 0.01])
        test_tasks.write(tmp_path, label, bits, metric="bits_per_byte")
        with np.load(tmp_path / label / "metrics.npz") as arrays:
            held = dict(arrays) | {"bits_per_byte_before": at(0, bits + 1), "bits_per_byte_held_out": at(1, bits + 2)}
        held["bits_per_byte_five_periods_ago"] = np.where(np.arange(32) < 28, held["bits_per_byte"], np.nan)
        held["bits_per_byte_twenty_periods_ago"] = np.full_like(held["bits_per_byte"], np.nan)
        np.savez(tmp_path / label / "metrics.npz", **held)
    assert there(tmp_path) == ["curves", "tasks"]
    runs = list(read_runs(tmp_path).values())
    found = part("curves", runs)
    text = "".join(map(str, found.tables[0].rows))
    assert "before learning it" in text and "after learning it" in text and "held-out" in text and "twenty" not in text
    assert "five periods ago" in text and "five periods ago" not in "".join(map(str, found.tables[1].rows))
    assert len(found.draw().axes) == 4
    verdicts, _ = report(tmp_path)
    assert [line.partition(", bits")[2].partition(" over")[0] for line in verdicts[:1]] == [
        " per byte before learning it"
    ]
    assert any("bits per byte after learning it over the last 25% of tasks" in line for line in verdicts)


def test_learned_step_sizes_are_told_by_layer_of_the_runs_that_learn_them(tmp_path):
    for label in ("backprop", "meta"):
        test_tasks.write(tmp_path, label, [STEADY, STEADY + 0.01], metric="online_accuracy")
    with np.load(tmp_path / "meta" / "metrics.npz") as arrays:
        held = dict(arrays)
    like = held["online_accuracy"]
    held |= {f"log10_step_size_{name}.Dense_0": np.full_like(like, at) for name, at in (("low", -4), ("median", -2))}
    held["step_size_age_correlation"] = np.full_like(like, -0.25)
    np.savez(tmp_path / "meta" / "metrics.npz", **held)
    assert there(tmp_path) == ["curves", "step_sizes"]
    found = part("step_sizes", list(read_runs(tmp_path).values()))
    text = ["".join(map(str, table.rows)) for table in found.tables]
    assert "log10 of step sizes, low, Dense_0" in text[0] and "backprop" not in text[0] and "-4" in text[0]
    assert "step sizes and age" in text[1] and "-0.25" in text[1]
    assert len(found.draw().axes) == 1


def test_an_error_that_stays_above_a_fresh_networks_is_a_loss(tmp_path):
    spread = np.array([[0.0], [0.1], [0.2]])
    for label, error in (("backprop", 2.0), ("fresh_network", 1.0), ("l2", 5.0)):
        hypers = ({"weight_decay": 0.1},) if label == "l2" else ({},)
        test_compare.write(tmp_path, label, error + spread + np.zeros((3, 8)), hypers=hypers)
    verdicts, _ = report(tmp_path)
    (line,) = verdicts  # l2 differs in more than the past
    assert line.startswith("Loss of plasticity shown: backprop minus fresh network, squared error over the last 25% of")
    assert line.endswith(": 1 [1, 1], 3 pairs.")


def test_what_cannot_be_told_is_named_with_the_reason(tmp_path):
    test_tasks.write(tmp_path, "backprop", [STEADY], seeds=[0])
    test_tasks.write(tmp_path, "fresh_network", [STEADY], seeds=[7])
    report(tmp_path)
    assert "Not told: fresh network and backprop: no seed in common" in (tmp_path / "report.md").read_text()


def test_a_run_under_way_is_reported_as_far_as_it_is(tmp_path):
    two = tiny.experiment(methods="backprop,l2")
    assert tiny.stopped(two, tmp_path, 5)  # backprop's twelve chunks come first
    report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "partial: " in text and "Nothing measured yet: l2." in text and "![curves]" in text
    runs = read(tmp_path)
    assert f"backprop is {runs[0].progress}" in caption(runs) and curves(runs)[0].note.endswith("partial")
    assert f"backprop: {runs[0].progress}." in mean_table(curves(runs)).remarks
    assert plot(tmp_path, out=tmp_path / "f.png").exists()
    rows = export(tmp_path).read_text().splitlines()
    assert len(rows) > 1 and {line.split(",")[0] for line in rows[1:]} == {"backprop"}


def test_parts_are_printed_alone(stream, tmp_path, capsys):
    values = flags.FlagValues()
    command.define_flags(values)
    out = tmp_path / "wait.svg"
    command.main(values(["report", str(stream), "--only=tasks", "--window=0.5", f"--out={out}"])[1:], values)
    printed = capsys.readouterr().out
    assert "last 50%" in printed and printed.endswith(f"\n\n{out}\n") and out.read_bytes().startswith(b"<?xml")
    assert not (stream / "report.md").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--only=task"], "--only: unknown 'task' .did you mean 'tasks'"),
        (["--out=f.png"], "--out: the figure of one part; --only names 0"),
        (["--only=curves,tasks", "--out=f.png"], "--only names 2"),
        (["--only=returns"], "metric: unknown 'episode_return'"),
        (["--only=replacements"], "no replacement log"),
        (["--only=tasks", "--reference=backprp"], "--reference: unknown 'backprp'"),
    ],
)
def test_wrong_questions_write_nothing(stream, given, words):
    values = flags.FlagValues()
    command.define_flags(values)
    rest = values(["report", str(stream), *given])[1:]
    with pytest.raises(InputError, match=words):
        command.main(rest, values)
    assert not [path for path in stream.iterdir() if path.is_file()]


def test_a_part_without_a_figure(stream, tmp_path):
    test_returns.write(tmp_path / "agents", "standard", np.ones((2, 4)))
    runs = list(read_runs(tmp_path / "agents").values())
    assert part("returns", runs, Options()).draw is None
    with pytest.raises(InputError, match="no run folder given"):
        report([])


def test_wrong_input_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.report", str(tmp_path / "none"), "--only=returns"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
