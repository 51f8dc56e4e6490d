"""What is told of streams to which classes keep coming, on numbers made by hand."""

import functools

import numpy as np
import pytest

from launch.analysis import increments as module
from launch.analysis.increments import ASKED, Question, by_increment, increments
from launch.analysis.survival import never
from launch.analysis.text import joined
from launch.errors import InputError
from launch.figures.parts import draw_increments as draw
from launch.storage.run_folder import read_runs, write_run
from tasks.incremental_cifar100 import IncrementalCIFAR100, presentations, updates

EPOCHS, STEPS = 4, 3  # epochs of an increment, and steps in an epoch of the first
AGES = {"accuracy_newest_classes": 0.05, "accuracy_middle_classes": 0.0, "accuracy_oldest_classes": -0.05}


def write(folder, label, ends, on_the_way=None, method=None, task="cifar_short", cut=0, **about):
    """A run whose accuracies at the end of increments are `ends` [lane, increment].

    Of every increment the epochs before the last have `on_the_way` of the accuracy at its end (default: half).
    """
    ends = np.asarray(ends, float)
    lanes, number = ends.shape
    settings = {"task.epochs": EPOCHS, "task.classes_per_increment": 5} | about.pop("settings", {})
    epochs = [EPOCHS * (t + 2) // 2 if settings.get("task.cumulative") else EPOCHS for t in range(number)]
    starts = [0, *np.cumsum([e * STEPS * (t + 1) for t, e in enumerate(epochs)]).tolist()]
    names = ("test_accuracy", "test_accuracy_in_task", *AGES, "dormant_units", "stable_rank_old_classes")
    metrics = {name: np.full((lanes, starts[-1] // STEPS), np.nan) for name in names}
    for t, passes in enumerate(epochs):
        metrics["dormant_units"][:, starts[t] // STEPS] = 0.01 * t
        metrics["stable_rank_old_classes"][:, starts[t] // STEPS] = 0.9
        bins = [(starts[t] // STEPS) + (e + 1) * (t + 1) - 1 for e in range(passes)]
        before = 0.5 if on_the_way is None else on_the_way
        metrics["test_accuracy_in_task"][:, bins] = ends[:, t, None] * np.array([before] * (passes - 1) + [1.0])
        metrics["test_accuracy"][:, bins[-1]] = ends[:, t]
        for name, more in AGES.items():
            metrics[name][:, bins[-1]] = ends[:, t] + more
    seeds = about.pop("seeds", range(lanes))
    hypers = about.pop("hypers", [{}] * lanes)
    meta = {"label": label, "method": method or label, "task": task, "task_starts": starts, "note": "classes come"}
    meta |= {"settings": {"steps": starts[-1], "bin": STEPS} | settings}
    meta["lanes"] = [{"method": label, "seed": s, "hyper": h} for s, h in zip(seeds, hypers, strict=True)]
    if cut:
        keep = starts[-1] // STEPS - cut
        metrics, meta["task_starts"] = {k: v[:, :keep] for k, v in metrics.items()}, [*starts[:-1], keep * STEPS]
    step = np.arange(1, meta["task_starts"][-1] // STEPS + 1) * STEPS
    write_run(folder / label, meta | about, step, np.full(len(step), STEPS), metrics)


FRESH = np.array([[0.9, 0.8, 0.7, 0.6], [0.8, 0.8, 0.6, 0.6]])
LOST = FRESH - [0.0, 0.02, 0.05, 0.1] - np.array([[0.0], [0.001]])


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "runs", "l2", LOST)
    write(tmp_path / "runs", "continual_backprop", FRESH + 0.01, on_the_way=0.99)
    write(tmp_path / "runs", "fresh_network", FRESH, task_aware=True)
    return tmp_path / "runs"


@pytest.fixture
def longer(tmp_path):
    write(tmp_path / "longer", "fresh_network", FRESH + 0.03, settings={"task.cumulative": True}, on_the_way=0.5)
    return tmp_path / "longer"


def runs_of(*folders):
    return [run for folder in folders for run in read_runs(folder).values()]


def report(runs, question=ASKED, format="text"):
    return joined(*module.report(runs, question), format)


def told(*folders, **question):
    return {each.curve.name: each for each in increments(runs_of(*folders), Question(**question))}


def test_relative_accuracy_is_of_the_same_seed_and_increment(tmp_path):
    write(tmp_path, "fresh_network", FRESH, seeds=(7, 3))
    write(tmp_path, "m", [[0.5] * 4, [0.9] * 4, [0.1] * 4], seeds=(3, 7, 8))
    found = told(tmp_path)["m"]
    expected = [[-30, -30, -10, -10], [0, 10, 20, 30], [np.nan] * 4]
    np.testing.assert_allclose(found.relative, expected, atol=1e-9)
    row = next(line for line in report(runs_of(tmp_path)).splitlines() if line.startswith("m "))
    assert " 10 [-244.1, 264.1] " in row and row.split()[-2:] == ["2", "3"]  # pairs, seeds


def test_the_classes_seen_updates_and_pictures_shown(folder, longer):
    found = told(folder, longer)
    plain, fresh = found["l2"], found["fresh network"]
    control = found["fresh network, as many updates"]
    assert plain.classes.tolist() == control.classes.tolist() == [5, 10, 15, 20]
    assert plain.updates.tolist() == [12, 36, 72, 120] and plain.epochs.tolist() == [4] * 4
    assert plain.presentations == (4, 16) and fresh.presentations == (4, 4)
    assert control.epochs.tolist() == [4, 6, 8, 10] and control.presentations == (10, 10)
    # The last network of the control has had as many updates as the network that goes on.
    assert control.updates[-1] - control.updates[-2] == plain.updates[-1]


def test_updates_and_pictures_shown_agree_with_the_task(folder, longer, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "abcd":
        np.save(tmp_path / "pictures" / f"{name}.npy", np.zeros((30, 32, 32, 3), np.uint8))
    of_three_steps = {"classes_per_increment": 1, "increments": 4, "train_per_class": 20, "test_per_class": 10}
    make = functools.partial(
        IncrementalCIFAR100, str(tmp_path / "pictures"), epochs=EPOCHS, batch=6, probe_size=5, **of_three_steps
    )
    found = told(folder, longer)
    for name, cumulative in (("l2", False), ("fresh network, as many updates", True)):
        task = make(cumulative=cumulative)
        assert found[name].updates.tolist() == updates(task).tolist()
        assert found[name].epochs.sum() == presentations(task)[-1, 0]
        assert found[name].epochs[-1] == presentations(task)[-1, -1]
    assert found["l2"].presentations == tuple(presentations(make())[-1, [-1, 0]].tolist())


def test_the_control_is_compared_with_the_network_trained_as_published(folder, longer):
    found = told(longer, folder)
    np.testing.assert_allclose(found["fresh network, as many updates"].relative, 3)
    assert found["l2"].partner.run is found["fresh network"].curve.run
    alone = told(longer)
    assert [each.partner is each.curve for each in alone.values()] == [True]


def test_the_wait_is_counted_in_epochs_over_the_last_half_of_the_increments(folder, longer):
    found = told(folder, longer)
    lost, kept, fresh = (found[name].wait for name in ("l2", "continual backprop", "fresh network"))
    assert lost.number == 4 and never(found["l2"].waited).value == 1 and np.isinf(lost.median().value)
    # 0.99 (0.7 + 0.01) reaches 0.7 at once, 0.99 (0.6 + 0.01) reaches 0.6.
    assert never(found["continual backprop"].waited).value == 0 and kept.median().value == 1
    assert never(found["fresh network"].waited).value == 0 and fresh.median().value == 4
    control = found["fresh network, as many updates"].wait
    assert control.share[-1] == 0 and control.median().value == 8 and control.restricted_mean(10).value == 9


def test_what_was_not_measured_on_the_way_has_no_wait(tmp_path):
    write(tmp_path, "fresh_network", FRESH)
    with np.load(tmp_path / "fresh_network/metrics.npz") as held:
        arrays = dict(held)
    del arrays["test_accuracy_in_task"]
    write_run(
        tmp_path / "fresh_network", read_runs(tmp_path)["fresh_network"].meta, arrays["step"], arrays["count"], arrays
    )
    assert told(tmp_path)["fresh network"].wait is None
    assert "never (%)" not in report(runs_of(tmp_path))


def test_the_best_epoch_counts_where_the_task_says_so(tmp_path):
    settings = {"task.accuracy": "best_epoch"}
    write(tmp_path, "m", FRESH, on_the_way=1.1, settings=settings)
    write(tmp_path, "fresh_network", FRESH, settings=settings)
    runs = read_runs(tmp_path)
    found = told(tmp_path)["m"]
    np.testing.assert_allclose(found.relative, 10 * FRESH)
    np.testing.assert_allclose(found.curve.values("accuracy_oldest_classes"), 100 * FRESH - 5)
    text = report(list(runs.values()), Question(base="m"))
    assert "the highest of an increment's epochs, chosen on the test pictures" in text
    assert (
        "Loss of plasticity not shown at this scale: m minus fresh network" in text and ": 6 [6, 6], 2 pairs." in text
    )
    write(tmp_path / "other", "fresh_network", FRESH)
    with pytest.raises(InputError, match=r"different task\.accuracy, best_epoch and None"):
        increments([runs["m"], *runs_of(tmp_path / "other")])


@pytest.mark.parametrize(("accuracy", "missed"), [("selected", 0.0), ("best_epoch", 1.0)])
def test_the_wait_is_for_the_accuracy_that_counts(accuracy, missed, tmp_path):
    """The reference is better on the way than at its end, which the other comes to in its last epoch."""
    settings = {"task.accuracy": accuracy}
    write(tmp_path, "m", FRESH, settings=settings)
    write(tmp_path, "fresh_network", FRESH, on_the_way=1.05, settings=settings)
    assert never(told(tmp_path)["m"].waited).value == missed


def test_other_metrics_are_the_last_of_their_increment(folder):
    found = told(folder, metric="accuracy_newest_classes")["l2"]
    np.testing.assert_allclose(found.relative, 100 * (LOST - FRESH), atol=1e-9)
    assert found.wait is None


def test_an_increment_that_is_not_over_is_left_out(tmp_path):
    write(tmp_path, "fresh_network", FRESH, cut=2)
    found = told(tmp_path)["fresh network"]
    assert found.classes.tolist() == [5, 10, 15] and found.updates.tolist() == [12, 36, 72]
    assert by_increment(found.run).metrics["test_accuracy"].tolist() == FRESH[:, :3].tolist()


def test_shown_where_the_last_quarter_of_the_base_lies_below(folder, longer):
    line = report(runs_of(folder, longer)).splitlines()[-1]
    assert line.startswith("Loss of plasticity shown: l2 minus fresh network, test accuracy (%) over the last 25%")
    assert "-10.05" in line
    line = report(runs_of(folder, longer), Question(base="continual_backprop")).splitlines()[-1]
    assert line.startswith("Loss of plasticity not shown at this scale: continual backprop minus")
    line = report(runs_of(folder, longer), Question(reference="continual_backprop")).splitlines()[-1]
    assert line.startswith("Loss of plasticity shown: l2 minus continual backprop")


def test_the_base_is_the_first_of_the_usual_labels(folder):
    write(folder, "base", FRESH - 0.2, method="l2")
    assert report(runs_of(folder)).splitlines()[-1].startswith("Loss of plasticity shown: base minus")


def test_the_control_alone_as_reference_has_its_verdict(folder, tmp_path):
    write(tmp_path / "longer", "retrained", FRESH + 0.03, settings={"task.cumulative": True}, method="fresh_network")
    line = report(runs_of(folder, tmp_path / "longer"), Question(reference="retrained")).splitlines()[-1]
    assert line.startswith("Loss of plasticity shown: l2 minus retrained")


def test_several_settings_are_compared_with_the_like(tmp_path):
    hypers = [{"step_size": 0.1}] * 2 + [{"step_size": 0.2}] * 2
    write(tmp_path, "l2", [*LOST, *FRESH], hypers=hypers, seeds=(0, 1, 0, 1))
    write(tmp_path, "fresh_network", FRESH)
    found = told(tmp_path)
    np.testing.assert_allclose(found["l2, step size 0.2"].relative, 0)
    relative = found["l2, step size 0.1"].relative.to_numpy()
    assert len(relative) == 2 and relative.max() < 1e-9
    write(tmp_path, "fresh_network", [*FRESH, *FRESH], hypers=hypers, seeds=(0, 1, 0, 1))
    write(tmp_path, "l2", LOST)
    with pytest.raises(InputError, match="l2: --reference=fresh_network names several runs or settings"):
        increments(runs_of(tmp_path))


def test_the_tables(folder, longer):
    text = report(runs_of(folder, longer))
    rows = [line for line in text.splitlines() if line.startswith("l2 ")]
    assert len(rows) == 1 + 1 + 1 + 4
    assert "-10.05 [-10.69, -9.415]" in rows[0] and rows[1].split()[-4:] == ["120", "120", "4", "16"]
    assert rows[2].split()[1:3] == ["100", "[100,"] and "not reached" in rows[2]
    assert rows[3].split()[1] == "5" and rows[-1].split()[1] == "20"
    assert "task-aware" in text and "fresh network, as many updates" in text
    assert "| l2 | 5 |" in report(runs_of(folder), format="markdown")
    latex = report(runs_of(folder), format="latex")
    assert latex.count(r"\begin{tabular}") == 4 and latex.splitlines()[-1].startswith("% Loss of plasticity")


def test_the_figure_is_drawn_against_classes(folder, longer):
    drawing, axes = draw(increments(runs_of(folder, longer)))
    names = [ax.get_ylabel() for ax in axes]
    assert names == [
        "relative accuracy (points)", "test accuracy (%)", "dormant units (%)", "newest classes (%)",
        "middle classes (%)", "oldest classes (%)", "stable rank, old classes (% of units)",
    ]  # fmt: skip
    lines = {ax: [line for line in ax.get_lines() if not line.get_label().startswith("_")] for ax in axes}
    assert [len(lines[ax]) for ax in axes[:2]] == [3, 4]
    assert lines[axes[1]][0].get_xdata().tolist() == [5, 10, 15, 20] and axes[1].get_xlabel() == "classes seen"
    assert lines[axes[2]][0].get_xdata().tolist() == [0, 5, 10, 15] and axes[2].get_xlabel() == "classes seen before"
    assert len({ax.get_ylim() for ax in axes[3:6]}) == 1
    text = drawing.texts[0].get_text().replace("\n", " ")
    assert "classes come" in text and "as many updates: increment t is (t + 1) / 2 times as long" in text
    assert len(drawing.legends[0].get_texts()) == 4


def test_a_stream_without_numbers_of_classes_is_told_by_increment(tmp_path):
    settings = {"task.classes_per_increment": None}
    for label in ("backprop", "fresh_network"):
        write(tmp_path, label, FRESH[:, :2], task="warm_start", settings=settings)
    assert told(tmp_path)["backprop"].classes.tolist() == [1, 2]
    _, axes = draw(increments(runs_of(tmp_path)))
    assert axes[0].get_xlabel() == "increment"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"metric": "test_acuracy"}, "did you mean 'test_accuracy'"),
        ({"metric": "dormant_units"}, "lower values are better"),
        ({"reference": "fresh_netwrk"}, "--reference: unknown 'fresh_netwrk' .did you mean 'fresh_network'"),
        ({"base": "l3"}, "--base: unknown 'l3' .did you mean 'l2'"),
        ({"base": "fresh_network"}, "--base: unknown 'fresh_network'"),
    ],
)
def test_wrong_questions(folder, question, words):
    with pytest.raises(InputError, match=words) as raised:
        report(runs_of(folder), Question(**question))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("ends", "about", "words"),
    [
        (FRESH, {"task": "incremental_cifar100"}, "different tasks, cifar_short and incremental_cifar100"),
        (FRESH, {"settings": {"task.classes_per_increment": 10}}, r"different task\.classes_per_increment, 5 and 10"),
        (FRESH[:, :3], {}, "different numbers of increments, 4 and 3"),
        (FRESH, {"seeds": (8, 9)}, "l2 and fresh network: no seed in common"),
        (FRESH, {"settings": {"task.epochs": 5}, "task_starts": [0, 12, 36, 72, 120]}, "holds no 5 whole epochs"),
        (FRESH, {"settings": {"task.epochs": "few"}, "task_starts": [0, 12, 36, 72, 120]}, r"lack task\.epochs"),
        (FRESH, {"settings": {"task.classes_per_increment": 0.5}}, r"classes_per_increment in run.json is 0\.5, not"),
        (FRESH, {"task_starts": [0, 30, 60, 90, 120]}, "its tasks do not grow"),
        (FRESH, {"task_starts": [0, 120]}, "its tasks do not grow"),
        (FRESH, {"task_starts": None}, "lacks task_starts"),
        (FRESH * np.nan, {}, "no increment holds test_accuracy"),
    ],
)
def test_wrong_runs(tmp_path, ends, about, words):
    write(tmp_path / "runs", "l2", LOST)
    made = about | {"settings": {k: v for k, v in about.get("settings", {}).items() if k != "task.epochs"}}
    write(tmp_path / "runs", "fresh_network", ends, **made)
    run = read_runs(tmp_path / "runs")["fresh_network"]
    run.meta["settings"].update(about.get("settings", {}))
    with pytest.raises(InputError, match=words) as raised:
        increments([read_runs(tmp_path / "runs")["l2"], run])
    assert "\n" not in str(raised.value)
