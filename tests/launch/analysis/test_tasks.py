"""What is told of learning late in a run, on numbers made by hand: quantities, the wait, what is shown, the command."""

import numpy as np
import pytest

from launch.analysis import tasks as module
from launch.analysis.curves import curves
from launch.analysis.tasks import ASKED, Question, learned, shown
from launch.analysis.text import joined
from launch.errors import InputError
from launch.figures.parts import draw_waits as draw
from launch.storage.run_folder import read_runs, write_run

BINS = 4  # evaluations in a task, 10 updates apart


def write(folder, label, values, hypers=({},), starts=None, metric="test_accuracy", settings=(), **about):
    """A run with in-task accuracies `values` [lane, task, evaluation]; lanes are hypers x seeds."""
    values = np.asarray(values, float)
    lanes, tasks, bins = values.shape
    about = {"seeds": range(lanes // len(hypers)), "task": "toy", "method": label} | about
    entries = [{"method": label, "seed": s, "hyper": dict(h)} for h in hypers for s in about["seeds"]]
    after = np.where(np.arange(bins) == bins - 1, values, np.nan).reshape(lanes, -1)
    steps = 10 * tasks * bins
    meta = {"label": label, "settings": {"steps": steps} | dict(settings), "lanes": entries}
    meta["task_starts"] = list(range(0, steps + 1, 10 * bins)) if starts is None else starts
    meta |= {key: value for key, value in about.items() if key != "seeds"}
    metrics = {metric: after, f"{metric}_in_task": values.reshape(lanes, -1)}
    write_run(folder / label, meta, np.arange(10, steps + 1, 10), np.full(tasks * bins, 10), metrics)


def curve(*ends):
    """[task, evaluation]: 0.5 and from the third evaluation on `end`, for the end of every task."""
    return np.array([[0.5, 0.5, end, end] for end in ends])


DECLINING = curve(0.8, 0.9, 0.9, 0.8, 0.8, 0.7, 0.6, 0.6)
STEADY = curve(*[0.8] * 8)


def report(runs, question=ASKED, reference=None, format="text"):
    return joined(*module.report(runs, question, reference), format)


def differences(runs, reference, question=ASKED):
    return module.compared(learned(runs, question), question, reference)


def judged(runs, one, other="fresh_network"):
    (one,), (other,) = curves([runs[one]]), curves([runs[other]])
    found = shown(one, other)
    return found.row.difference, found.verdict


def only(folder, **question):
    (found,) = learned(list(read_runs(folder).values()), Question(**question))
    return found


@pytest.fixture
def folder(tmp_path):
    shift = np.array([0.0, 0.01, -0.01])[:, None, None]
    write(tmp_path / "runs", "backprop", DECLINING + shift)
    write(tmp_path / "runs", "continual_backprop", STEADY + shift)
    write(tmp_path / "runs", "fresh_network", STEADY + 2 * shift, task_aware=True)
    return tmp_path / "runs"


def runs_of(folder):
    return list(read_runs(folder).values())


def test_quantities_of_a_known_curve(tmp_path):
    write(tmp_path, "m", [DECLINING, DECLINING + 0.1])
    found = only(tmp_path, tasks_per_bin=2).quantities
    expected = {
        "first task": (80, 90),
        "peak": (85, 95),  # tasks 1-2 and 3-4 alike: the first of them
        "last 25%": (60, 70),
        "drop from peak": (25, 25),
        "within a task, first 25%": (67.5, 77.5),
        "within a task, last 25%": (55, 65),
        "never at the threshold (% of tasks)": (100, 100),
        "updates to the threshold": (40, 40),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_the_bin_of_the_peak_is_that_of_the_mean_over_seeds_the_same_for_all(tmp_path):
    write(tmp_path, "m", [curve(0.6, 0.9, 0.6, 0.5), curve(0.9, 0.8, 0.6, 0.5), curve(0.6, 0.8, 0.95, 0.5)])
    np.testing.assert_allclose(only(tmp_path, tasks_per_bin=1).quantities["peak"], [90, 80, 80])


def test_a_last_bin_of_fewer_tasks_is_no_peak(tmp_path):
    write(tmp_path, "m", [curve(0.6, 0.6, 0.7, 0.7, 0.9)])
    np.testing.assert_allclose(only(tmp_path, tasks_per_bin=2).quantities["peak"], [70])


@pytest.mark.parametrize(("tasks", "size"), [(8, 1), (100, 5), (1200, 50)])
def test_bins_of_the_peak_unless_they_are_given(tmp_path, tasks, size):
    write(tmp_path, "m", [curve(*[0.8] * tasks)])
    assert only(tmp_path).tasks_per_bin == size


def test_the_wait_early_and_late_leaves_the_first_task_out(tmp_path):
    write(tmp_path, "m", [DECLINING, STEADY])
    found = only(tmp_path)
    assert (found.early.span, found.late.span) == (slice(1, 3), slice(6, 8))
    assert found.early.horizon == found.late.horizon == 40
    early, late = found.early.survival, found.late.survival
    assert found.early.never.value == 0 and early.median().value == 30 and early.number == 4
    assert found.late.never.value == 50 and late.restricted_mean(40).value == 35 and late.median().value == 30
    assert found.late.never[1:] == (0, 100)  # one seed always, one never


def test_a_number_as_threshold_counts_the_first_task_too(tmp_path):
    write(tmp_path, "m", [DECLINING])
    found = only(tmp_path, threshold="0.85")
    assert (found.early.span, found.late.span) == (slice(0, 2), slice(6, 8))
    assert found.early.never.value == 50 and found.late.never.value == 100


def test_another_runs_accuracy_as_threshold_is_that_of_the_same_seed_and_task(tmp_path):
    write(tmp_path, "fresh_network", [STEADY, STEADY - 0.15], seeds=(1, 0))
    write(tmp_path, "m", [DECLINING, DECLINING])
    runs = runs_of(tmp_path)
    mine, fresh = learned(runs, Question(threshold="fresh_network"))
    # Against 0.65 (seed 0) and 0.8 (seed 1): the last two tasks end at 0.6; with half the run, 0.8, 0.7, 0.6, 0.6.
    assert mine.late.never.value == 100 and fresh.late.never.value == 0
    assert fresh.late.survival.median().value == 30
    mine, _ = learned(runs, Question(threshold="fresh_network", window=0.5))
    np.testing.assert_allclose(mine.quantities["never at the threshold (% of tasks)"], [50, 75])


def test_noise_reaches_a_threshold_earlier_the_more_often_one_looks(tmp_path):
    noise = np.random.default_rng(0).normal(0.8, 0.05, (6, 40, 8))
    write(tmp_path / "often", "m", noise)
    write(tmp_path / "seldom", "m", np.where(np.arange(8) % 4 == 3, noise, np.nan))
    often, seldom = (only(tmp_path / name, threshold="0.85").late.never.value for name in ("often", "seldom"))
    assert often < seldom - 20


def test_accuracy_after_a_task_is_the_metric_without_in_task_where_there_is_one(tmp_path):
    write(tmp_path, "m", [STEADY])
    with np.load(tmp_path / "m/metrics.npz") as held:
        arrays = dict(held)
    arrays["test_accuracy"] -= 0.3
    meta = read_runs(tmp_path)["m"].meta
    for kept, value in ((arrays, 50), ({k: v for k, v in arrays.items() if k != "test_accuracy"}, 80)):
        write_run(tmp_path / "m", meta, arrays["step"], arrays["count"], kept)
        np.testing.assert_allclose(only(tmp_path).quantities["last 25%"], [value])
        assert only(tmp_path).late.never.value == 0  # the threshold is of the metric that is followed


def test_where_lower_values_are_better_everything_is_the_mirror_image(tmp_path):
    for name, sign in (("test_accuracy", 1), ("bits_per_byte", -1)):
        write(tmp_path / name, "backprop", np.array([DECLINING, DECLINING + 0.1]) * sign, metric=name)
        write(tmp_path / name, "fresh_network", np.array([STEADY, STEADY + 0.12]) * sign, metric=name)
    told = {}
    for name in ("test_accuracy", "bits_per_byte"):
        runs = runs_of(tmp_path / name)
        assert module.metric_of(runs) == f"{name}_in_task"
        question = Question(metric=f"{name}_in_task", threshold="fresh_network", tasks_per_bin=1)
        told[name] = (
            {each.curve.name: each.quantities for each in learned(runs, question)},
            differences(runs, "backprop", question),
            module.report(runs, question)[1],
        )
    (up, ours, lost), (down, theirs, worse) = told.values()
    for curve, quantities in up.items():
        for name, values in quantities.items():
            same = "drop" in name or "threshold" in name
            scale = (0.01 if "threshold" not in name else 1) * (1 if same else -1)
            np.testing.assert_allclose(down[curve][name], values * scale, atol=1e-9, err_msg=name)
    assert [row.difference.wins for row in ours] == [row.difference.wins for row in theirs]
    assert "Loss of plasticity shown" in lost[0] and "Loss of plasticity shown" in worse[0]


def test_differences_are_paired_by_seed(folder):
    rows = {(row.a, row.metric): row.difference for row in differences(runs_of(folder), "backprop")}
    assert len(rows) == 10
    kept = rows["continual backprop", "last 25%"]
    assert kept.mean == pytest.approx(20) and kept.high - kept.low < 1e-9 and (kept.n, kept.wins) == (3, 3)
    assert rows["fresh network", "last 25%"].high > 21
    assert rows["continual backprop", "updates to the threshold"][:3] == pytest.approx((-10, -10, -10))
    assert rows["continual backprop", "drop from peak"].wins == 3


def test_shown_where_the_interval_lies_below_zero(tmp_path):
    half = 4.302652729911275 * 2 / np.sqrt(3)  # Student's 97.5% point with 2 degrees of freedom; s is 2 points
    spread = np.array([-0.02, 0.0, 0.02])[:, None, None]
    write(tmp_path, "fresh_network", STEADY[None] + 0 * spread)
    for label, below in (("lost", 0.06), ("unclear", 0.04), ("above", -0.1)):
        write(tmp_path, label, STEADY - below + spread)
    runs = read_runs(tmp_path)
    lost, verdict = judged(runs, "lost")
    assert lost[:3] == pytest.approx((-6, -6 - half, -6 + half)) and verdict == "shown"
    for label in ("unclear", "above"):
        assert judged(runs, label)[1] == "not shown at this scale"


def test_only_the_last_quarter_counts_and_one_seed_shows_nothing(tmp_path):
    late = np.where(np.arange(8)[:, None] >= 6, STEADY, 0.1)
    write(tmp_path, "fresh_network", [STEADY] * 2)
    write(tmp_path, "late", [late] * 2)
    write(tmp_path, "one", [DECLINING], seeds=(1,))
    runs = read_runs(tmp_path)
    late, verdict = judged(runs, "late")
    assert late[:3] == pytest.approx((0, 0, 0)) and verdict == "not shown at this scale"
    one, verdict = judged(runs, "one")
    assert one.mean == pytest.approx(-20) and verdict == "not shown at this scale"


def test_every_setting_of_backprop_has_its_verdict(tmp_path):
    hypers = ({"step_size": 0.1}, {"step_size": 0.2})
    write(tmp_path, "backprop", [DECLINING, DECLINING, STEADY, STEADY], hypers=hypers)
    write(tmp_path, "fresh_network", [STEADY] * 4, hypers=hypers)
    lines = report(runs_of(tmp_path), Question()).splitlines()[-3:]
    assert lines[2] == "2 verdicts, each at 95%, not widened for their number."
    assert lines[0].startswith("Loss of plasticity shown: backprop, step size 0.1 minus fresh network, step size 0.1")
    assert lines[1].startswith("Loss of plasticity not shown at this scale: backprop, step size 0.2")


def test_a_verdict_says_what_else_differs(tmp_path):
    hypers = {
        "backprop": {"step_size": 0.1, "b1": 0.9},
        "fresh_network": {"step_size": 0.1, "b1": 0.5, "weight_decay": 0.01},
    }
    for label, hyper in hypers.items():
        write(tmp_path, label, [STEADY] * 2, hypers=(hyper,))
    last = report(runs_of(tmp_path), Question()).splitlines()[-1]
    assert last.endswith("They differ in more than the past: b1 0.9 and 0.5, weight decay 0 and 0.01.")


def test_the_text(folder):
    text = report(runs_of(folder), Question())
    row = next(line for line in text.splitlines() if line.startswith("backprop "))
    assert "80 [77.52, 82.48]" in row and "20 [20, 20]" not in row and "30 [30, 30]" in row  # peak 90, last 60
    assert text.count("not reached") == 1 and "bin of 1 task in which" in text
    last = text.splitlines()[-1]
    assert last.startswith(
        "Loss of plasticity shown: backprop minus fresh network, test accuracy (%) over the last 25%"
    )


def test_other_formats(folder):
    runs = runs_of(folder)
    assert "| backprop | 2–3 | 0 [0, 0] |" in report(runs, Question(), format="markdown")
    latex = report(runs, Question(), format="latex")
    assert latex.count(r"\begin{tabular}") == 3 and latex.splitlines()[-1].startswith("% Loss of plasticity shown")
    with pytest.raises(InputError, match="did you mean 'latex'"):
        report(runs, Question(), format="latx")


def test_a_single_run_has_no_differences_and_no_verdict(tmp_path):
    write(tmp_path, "m", [STEADY])
    text = report(runs_of(tmp_path), Question())
    assert "A - B" not in text and "Loss of plasticity" not in text


def test_the_figure_is_a_step_curve_per_label_early_and_late(folder):
    runs = runs_of(folder)
    question = Question()
    drawing, axes = draw(learned(runs, question), question)
    assert [ax.get_title() for ax in axes] == ["first 25% of tasks (2–3)", "last 25% of tasks (7–8)"]
    for ax, height in zip(axes, (0, 100), strict=True):
        line = next(line for line in ax.get_lines() if line.get_label().startswith("backprop"))
        assert line.get_drawstyle() == "steps-post" and len(ax.get_lines()) == 3
        assert line.get_xydata()[0].tolist() == [0, 100] and line.get_xydata()[-1].tolist() == [40, height]
    assert "the first task's accuracy" in drawing.texts[0].get_text().replace("\n", " ")


def test_a_run_of_one_folder_is_paired_with_those_beside_it(tmp_path):
    for name, low in (("one", 0.0), ("two", 0.3)):
        write(tmp_path / name, "backprop", [DECLINING, DECLINING], settings={"network": name})
        write(tmp_path / name, "fresh_network", [STEADY - low] * 2, settings={"network": name})
    runs = [*runs_of(tmp_path / "one"), *runs_of(tmp_path / "two")]
    one, two = report(runs, Question()).splitlines()[-3:-1]
    assert one.startswith("Loss of plasticity shown: backprop, network one minus fresh network, network one,")
    assert two.startswith("Loss of plasticity not shown at this scale: backprop, network two minus")


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"metric": "test_acuracy"}, "did you mean 'test_accuracy'"),
        ({"window": 0.0}, "--window: 0 is not in"),
        ({"window": 1.5}, "--window: 1.5 is not in"),
        ({"threshold": "85"}, r"--threshold: 85 is not in \(0, 1\]"),
        ({"threshold": "nan"}, "--threshold: nan"),
        ({"threshold": "frst"}, "--threshold: unknown 'frst' .did you mean 'first'"),
        ({"tasks_per_bin": 0}, r"--tasks_per_bin: 0 is not in 1\.\.\.8"),
        ({"tasks_per_bin": 9}, r"--tasks_per_bin: 9 is not in 1\.\.\.8"),
    ],
)
def test_wrong_questions(folder, question, words):
    with pytest.raises(InputError, match=words) as told:
        report(runs_of(folder), Question(**question))
    assert "\n" not in str(told.value)


def test_wrong_runs(tmp_path, folder):
    with pytest.raises(InputError, match="--reference: unknown 'backprp'"):
        report(runs_of(folder), Question(), "backprp")
    write(tmp_path / "single", "m", [STEADY[:1]])
    with pytest.raises(InputError, match="single/m: holds a single task"):
        learned(runs_of(tmp_path / "single"))
    write(tmp_path / "late", "m", np.where(np.arange(8)[:, None] < 2, np.nan, STEADY)[None])
    with pytest.raises(InputError, match=r"late/m: test_accuracy_in_task of tasks 2–3, or the threshold \(first\)"):
        learned(runs_of(tmp_path / "late"))
    write(folder, "uneven", STEADY[None], starts=[0, 80, 320])
    with pytest.raises(InputError, match="begin at different steps"):
        differences(runs_of(folder), "backprop")


def test_thresholds_of_another_run_that_cannot_be(tmp_path):
    write(tmp_path, "m", [STEADY])
    write(tmp_path, "many", [STEADY] * 2, hypers=({"step_size": 0.1}, {"step_size": 0.2}))
    with pytest.raises(InputError, match="many names several"):
        learned(runs_of(tmp_path), Question(threshold="many"))
    write(tmp_path / "apart", "m", [STEADY], seeds=(0,))
    write(tmp_path / "apart", "other", [STEADY], seeds=(7,))
    with pytest.raises(InputError, match=r"or the threshold \(other\) for them, was not measured"):
        learned(runs_of(tmp_path / "apart"), Question(threshold="other"))
