"""The demo's table and sentences, computed from made-up runs of which the answer is known."""

import numpy as np
import pytest

from launch import demo
from launch.figures import figure
from launch.storage.run_folder import Run

STEP = np.arange(1, 21) * 50
LEVELS = {"backprop": 2.0, "best_step_size": 1.5, "l2": 1.2, "shrink_and_perturb": 1.1, "continual_backprop": 1.0,
          "rescue": 1.25, "fresh_network": 0.5, "linear": 0.9}  # fmt: skip


def made_up(label, late, seeds=6):
    """Squared error goes in a line from 1 to `late`, every seed beside it by its own constant."""
    noise = 0.01 * np.random.default_rng(1).normal(size=(seeds, 1))
    ramp = np.linspace(1, late, len(STEP))[None] + noise
    metrics = {"squared_error": ramp, "mean_weight_magnitude": ramp / 4, "dormant_units": ramp / 10}
    if label == "linear":
        del metrics["dormant_units"]
    lanes = [{"method": label, "seed": s, "hyper": {"step_size": 0.01}} for s in range(seeds)]
    meta = {"label": label, "method": label, "task": "slowly_changing_regression", "settings": {"preset": "sound"},
            "lanes": lanes, "diverged": [], "task_aware": label == "fresh_network", "finished": True}  # fmt: skip
    return Run(label, meta, STEP, np.full(len(STEP), 50), metrics)


@pytest.fixture
def runs():
    return {label: made_up(label, late) for label, late in LEVELS.items()}


def test_the_words_say_what_the_numbers_say(runs):
    text = " ".join(demo.words(runs).split())
    assert "rose from 1.03 to 1.97" in text or "rose from" in text
    assert "recovered" in text
    assert "did not clearly recover" not in text
    assert "in 6 of 6 seeds" in text
    assert "Over 1,000 steps and 6 seeds" in text


def test_the_words_do_not_claim_what_did_not_happen(runs):
    flat = runs | {"backprop": made_up("backprop", 1.0), "rescue": made_up("rescue", 1.0)}
    text = " ".join(demo.words(flat).split())
    assert "did not clearly change" in text
    assert "did not clearly recover" in text
    assert "fell" in demo.words(runs | {"backprop": made_up("backprop", 0.5)})


def test_the_table_has_a_row_a_method_and_pairs_with_backprop(runs):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in demo.table(runs).splitlines()]
    assert len(rows) == 2 + len(LEVELS)
    assert {len(row) for row in rows} == {6}
    by_name = {row[0]: row for row in rows[2:]}
    assert by_name["backprop"][3] == ""
    late = {name: run.metrics["squared_error"][:, -2:].mean() for name, run in runs.items()}
    assert by_name["rescue"][3].startswith(f"{late['rescue'] - late['backprop']:+.3f} ")
    assert by_name["linear"][4] == ""
    assert "fresh network (task-aware)" in by_name


def test_the_rescue_is_drawn_from_its_switch_on(runs):
    after = demo._after(runs["rescue"], 500)
    assert np.isnan(after.metrics["squared_error"][:, STEP <= 500]).all()
    np.testing.assert_array_equal(
        after.metrics["squared_error"][:, 10:], runs["rescue"].metrics["squared_error"][:, 10:]
    )


def test_the_figure_is_drawn(runs, tmp_path):
    path = demo.draw(runs, 500, tmp_path / "figure.png")
    assert path.stat().st_size > 10_000
    assert figure.FORMATS


def test_the_rescue_goes_on_with_the_very_networks_of_backprop(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TASK", "slowly_changing_regression(change_every=100)")
    runs = demo.run_all((3, 5), 400, tmp_path, 1, lambda label, steps: None)
    assert set(runs) == {*demo.COMPARED, *demo.BASELINES, "rescue"}
    rescue = runs["rescue"]
    assert rescue.meta["settings"]["branch"] == "backprop@200"
    np.testing.assert_array_equal(rescue.seeds, [3, 5])
    assert rescue.meta["method"] == "continual_backprop"
