"""What is told of many lanes on one device, with known numbers, and once as it is measured."""

import pytest

from launch import benchmark
from launch.benchmarks.device_rates import CONVNET, PPO, RESNET, Peaks, beside_peaks, device_table, moved_by_step
from launch.benchmarks.timing import Spread
from launch.benchmarks.workloads import BACKPROP, CBP, device_groups
from launch.engine.build import parameter_count


def exactly(value):
    return Spread(value, value, value)


PEAKS = Peaks({"float32": exactly(1000.0), "bfloat16": exactly(4000.0)}, exactly(100.0))


def row(group=CONVNET, **more):
    return {"group": group, "method": CBP, "lanes": 30, "lane_steps_per_second": exactly(100.0), **more}


def test_rates_stand_beside_what_arithmetic_and_memory_allow():
    """2 GFLOP take 2 ms at 1000 GFLOP/s; 0.1 GB take 1 ms at 100 GB/s, 0.3 GB take 3 ms. A lane-step takes 10 ms."""
    found = beside_peaks(row(step_gflop=2.0), PEAKS, "float32", 1e8)["on_device"]
    assert found["gflop_per_second"] == 200 and found["peak_share"] == 0.2
    assert found["floor_seconds"] == pytest.approx(2e-3) and found["over_floor"] == pytest.approx(5)
    assert beside_peaks(row(step_gflop=2.0), PEAKS, "bfloat16", 1e8)["on_device"]["floor_seconds"] == pytest.approx(
        1e-3
    )
    assert beside_peaks(row(step_gflop=2.0), PEAKS, "float32", 3e8)["on_device"]["floor_seconds"] == pytest.approx(3e-3)


@pytest.mark.parametrize(("group", "hours"), [(CONVNET, 1250.0), (RESNET, 87.5), (PPO, 5000 / 3)])
def test_the_published_runs_take_as_long_as_their_lane_steps(group, hours):
    """At 100 lane-steps a second; 30 runs of 15 M, of 1.05 M and of 20 M steps."""
    assert beside_peaks(row(group), PEAKS, "float32", None)["on_device"]["published_hours"] == pytest.approx(hours)


def test_the_table_leaves_empty_what_is_not_known():
    known = row(step_gflop=2.0, pictures=100)
    cases = [one | beside_peaks(one, PEAKS, "float32", moved) for one, moved in ((known, 1e8), (row(PPO), None))]
    table = device_table([*cases, row()], PEAKS)
    assert len(table.rows) == 2
    assert table.rows[0][3:6] == ("10,000", "200", "20") and table.rows[0][6] == "100"
    assert table.rows[1][3:9] == ("",) * 6
    assert "float32 1,000 GFLOP/s, bfloat16 4,000 GFLOP/s; memory 100 GB/s" in table.note
    assert not device_table([], None).rows


def test_a_step_moves_at_least_its_weights_in_and_out():
    case = device_groups(quick=True)[CONVNET][0]
    plan = case.plan()
    moved = moved_by_step(plan, case.lanes)
    assert moved is not None and moved > 2 * 4 * parameter_count(plan, plan.jobs[0])


def test_an_agents_iteration_is_not_counted():
    assert moved_by_step(device_groups(quick=True)[PPO][0].plan(), 2) is None


def test_many_lanes_are_measured(monkeypatch):
    cases = device_groups(quick=True)[CONVNET][:1]
    monkeypatch.setattr(benchmark, "device_groups", lambda *_: {CONVNET: cases})
    monkeypatch.setattr(benchmark, "measured_peaks", lambda *_: [])
    found = benchmark.benchmark([CONVNET], repeats=1, quick=True)
    assert [(each["method"], each["lanes"]) for each in found["cases"]] == [(BACKPROP, 2)]
    for each in found["cases"]:
        assert each["on_device"]["over_floor"] > 0 and each["on_device"]["published_hours"] > 0
    (table,) = (each for each in benchmark.tables(found | {"peaks": []}) if each.title.startswith("Many lanes"))
    assert len(table.rows) == 1
    assert benchmark._plain(found)["device_peaks"]["memory"]["median"] > 0
