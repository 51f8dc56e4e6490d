"""The sensitivity figure: what its points are, how its axes lie, what it refuses."""

import itertools

import numpy as np
import pytest

from launch.analysis.tuning import Setting, by_value, settings
from launch.errors import InputError
from launch.figures.figure import save
from launch.figures.parts import draw_sensitivity, log_spaced, score_range
from launch.storage.run_folder import read_run, read_runs, write_run


def write(folder, label, grid, score, seeds=(0, 1, 2), metric="squared_error", method=None, **about):
    """A run of every combination of `grid`; a lane has the mean `score(seed=..., **numbers)`."""
    lanes, values = [], []
    for combination in itertools.product(*grid.values()):
        hyper = dict(zip(grid, combination, strict=True))
        for seed in seeds:
            lanes.append({"method": method or label, "seed": seed, "hyper": hyper})
            values.append(np.full(4, float(score(seed=seed, **hyper))))
    meta = {"label": label, "method": method or label, "task": "toy", "settings": {"steps": 40}, "lanes": lanes}
    write_run(folder / label, meta | about, 10 * np.arange(1, 5), np.full(4, 10), {metric: np.array(values)})


@pytest.fixture
def folder(tmp_path):
    def score(weight_decay, step_size, seed):
        return abs(np.log10(weight_decay) + 2) + step_size + seed

    write(tmp_path, "l2", {"weight_decay": [1e-3, 1e-2, 1e-1], "step_size": [0.5, 0.1]}, score)
    return tmp_path


def drawn(folder, metric="squared_error", window=1.0):
    """The figure and its axes."""
    return draw_sensitivity(read_runs(folder), metric, window)


def test_a_point_is_the_best_of_the_other_numbers(folder):
    found = settings(read_run(folder / "l2"), "squared_error")
    decay, size = (by_value(found, "squared_error", name) for name in ("weight_decay", "step_size"))
    assert list(decay) == [1e-3, 1e-2, 1e-1] and list(size) == [0.1, 0.5]
    assert [each.score for each in decay.values()] == pytest.approx([2.1, 1.1, 2.1])  # each with step_size=0.1
    assert [each.score for each in size.values()] == pytest.approx([1.1, 1.5])
    assert decay[1e-2].scores.tolist() == pytest.approx([0.1, 1.1, 2.1])


def test_a_panel_per_number_a_curve_per_method_and_a_star(folder):
    write(folder, "backprop", {"step_size": [0.1, 0.5, 0.9]}, lambda step_size, seed: 1.5 + step_size)
    write(folder, "fresh_network", {"step_size": [0.1]}, lambda step_size, seed: 1.2)
    figure, axes = drawn(folder)
    assert [ax.get_xlabel() for ax in axes] == ["step size", "weight decay"]
    assert [ax.get_xscale() for ax in axes] == ["linear", "log"]
    stars = [line.get_xydata().tolist() for line in axes[0].lines if line.get_marker() == "*"]
    assert [0.1, pytest.approx(1.6)] in [point for star in stars for point in star]
    assert [0.1, pytest.approx(1.1)] in [point for star in stars for point in star]
    assert all(any(np.allclose(line.get_ydata(), 1.2) for line in ax.lines) for ax in axes)  # the fresh network
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:3] == ["backprop (3 settings)", "fresh network (1 setting)", "l2 (6 settings)"]
    said = " ".join(figure.texts[0].get_text().split())
    for word in ("seeds 0–2", "each seed as a dot", "backprop 3, fresh_network 1, l2 6", "the best of the other"):
        assert word in said
    assert axes[0].get_ylabel() == "squared error, whole run"


def test_from_five_seeds_on_there_is_a_band_in_place_of_the_seeds(tmp_path):
    for seeds, bands in ((4, 0), (5, 1)):
        write(tmp_path / str(seeds), "l2", {"step_size": [0.1, 0.5]}, lambda step_size, seed: seed, range(seeds))
        _, (ax,) = drawn(tmp_path / str(seeds))
        dots = [line for line in ax.lines if line.get_marker() == "."]
        assert (len(ax.collections), len(dots)) == (bands, 2 * (1 - bands))


def test_diverged_lanes_stand_in_the_legend(folder):
    write(folder, "redo", {"step_size": [0.1, 0.5]}, lambda step_size, seed: 1.0, diverged=[0, 4])
    figure, _ = drawn(folder)
    assert "redo (2 settings, 2 lanes diverged)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_point_far_off_is_named_at_the_edge_and_flattens_no_curve(tmp_path):
    scores = {0.1: 1.0, 0.2: 1.1, 0.3: 1.2, 0.4: 9000.0}
    write(tmp_path, "backprop", {"step_size": list(scores)}, lambda step_size, seed: scores[step_size] + seed / 100)
    _, (ax,) = drawn(tmp_path)
    assert ax.get_ylim()[1] < 2
    assert [text.get_text() for text in ax.texts] == ["9,000"]


def test_far_off_is_below_where_more_is_better(tmp_path):
    scores = {0.1: 0.91, 0.2: 0.9, 0.3: 0.89, 0.4: 0.1}
    grid = {"step_size": list(scores)}
    write(tmp_path, "l2", grid, lambda step_size, seed: scores[step_size], metric="test_accuracy")
    _, (ax,) = drawn(tmp_path, "test_accuracy")
    assert 80 < ax.get_ylim()[0] < 89 < 91 < ax.get_ylim()[1]
    assert [text.get_text() for text in ax.texts] == ["10"]


def points(*scores, spread=0.1):
    return [Setting({}, np.arange(2), np.arange(2), np.array([each - spread, each + spread]), each) for each in scores]


def test_the_range_holds_points_and_seeds():
    low, high = score_range(points(1, 2, 3, 4), "squared_error")
    assert low < 0.9 and high > 4.1
    low, high = score_range(points(1, 1, 1, spread=0), "squared_error")
    assert low < 1 < high < 2


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1e-4, 1e-3, 1e-2], True),
        ([0.0, 1e-4, 1e-3, 1e-2], True),
        ([0.01, 0.03, 0.1, 0.3], True),
        ([1, 2, 4, 8], True),
        ([0.1, 0.2, 0.3], False),
        ([0.0, 0.5, 0.9], False),
        ([1e-3, 1e-2], True),
        ([0.4, 0.5], False),
        ([-1, 1, 10], False),
        ([0.5], False),
        ([], False),
    ],
)
def test_the_axis_is_logarithmic_where_the_values_are_spaced_so(values, logarithmic):
    assert log_spaced(values) == logarithmic


def test_a_zero_keeps_its_place_on_a_logarithmic_axis(tmp_path):
    write(tmp_path, "l2", {"weight_decay": [0.0, 1e-4, 1e-3, 1e-2]}, lambda weight_decay, seed: 1 + weight_decay)
    _, (ax,) = drawn(tmp_path)
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim()[0] <= 0
    assert 0.0 in ax.get_xticks()


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_the_same_runs_give_the_same_file(folder, tmp_path, format):
    first, second = (save(drawn(folder)[0], tmp_path / f"{name}.{format}").read_bytes() for name in "ab")
    assert first == second


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="--window"):
        drawn(folder, window=2.0)
    write(folder / "plain", "backprop", {"step_size": [0.1]}, lambda step_size, seed: 1.0)
    with pytest.raises(InputError, match="plain: nothing was swept; backprop"):
        drawn(folder / "plain")
