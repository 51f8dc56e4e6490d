"""The benchmark measures what is trained, counts passes and pairs ratios right, and writes what it prints."""

import json
import time

import numpy as np
import pytest
from absl import flags

from launch import benchmark
from launch.benchmarks.device_rates import step_gflop
from launch.benchmarks.timing import Spread, Table, ratio, timed, traffic
from launch.benchmarks.workloads import BACKPROP, CBP, CONTRIBUTION, LINEAR, REGRESSION, STREAM, Case, groups
from launch.errors import InputError

SIZES = (7, 5, 3, 2)
KERNELS = (35, 15, 6)


@pytest.fixture
def command():
    def command(*arguments):
        values = flags.FlagValues()
        benchmark.define_flags(values)
        values(["benchmark", *arguments])
        return benchmark.main([], values)

    return command


def test_passes_of_backprop():
    moved = traffic(SIZES, itemsize=1)
    assert moved.read == sum(KERNELS) + KERNELS[1] + KERNELS[2]
    assert moved.updated == 2 * sum(KERNELS)


def test_utilities_read_outgoing_then_incoming_weights():
    plain, one = traffic(SIZES, itemsize=1), traffic(SIZES, outgoing=True, itemsize=1)
    both = traffic(SIZES, outgoing=True, incoming=True, itemsize=1)
    assert plain.updated == one.updated == both.updated
    assert one.read - plain.read == KERNELS[1] + KERNELS[2]
    assert both.read - one.read == KERNELS[0] + KERNELS[1]


def test_wide_network_moves_what_the_floors_say():
    plain, one, both = (sum(benchmark.passes(method)) for method in (BACKPROP, CONTRIBUTION, CBP))
    assert one / plain == pytest.approx(benchmark.COST_FLOORS[CONTRIBUTION], abs=0.05)
    assert both / plain == pytest.approx(benchmark.COST_FLOORS[CBP], abs=0.05)


def test_ratio_pairs_neighbours():
    base = np.array([[1.0, 9.0], [2.0, 9.0], [4.0, 9.0]])  # a machine that slows down
    found = ratio(base * 3, base)
    assert found == (3.0, 3.0, 3.0)
    assert ratio(base * [[1], [2], [3]], base, 0.5) == (1.0, 0.5, 1.5)


def test_calls_take_turns():
    order = []
    times = timed({name: lambda name=name: order.append(name) for name in "AB"}, 3)
    assert order == list("AB" * 4)
    assert times["A"].shape == (3, 2)


def test_times_are_cpu_and_wall():
    times = timed({"sleep": lambda: time.sleep(0.02)}, 1)["sleep"][0]
    assert times[0] < times[1]


def test_whole_figure_adds_up_the_parts():
    def case(method, per_cpu):
        rates = {"lane_steps_per_cpu_second": Spread(per_cpu, 0, 0), "lane_steps_per_second": Spread(per_cpu / 2, 0, 0)}
        return {"group": "regression", "method": method, "lanes": 100} | rates

    cases = [case(BACKPROP, 1e6), case(LINEAR, 2e6), case(CBP, 0.5e6)]
    figure = benchmark.whole_figure(cases)
    assert figure is not None
    assert figure["cpu_seconds"] == pytest.approx(3 * 100 + 50 + 200)
    assert figure["wall_seconds"] == pytest.approx(2 * 550)
    assert figure["published_cpu_hours_without_linear"] == pytest.approx(1e8 * (3 / 3820 + 1 / 2160) / 3600)
    assert benchmark.whole_figure(cases[:2]) is None


def test_targets_judge_both_ways():
    fast = {"group": "mnist_3x100", "method": CBP, "lanes": 1, "times_published": 15.5}
    slow = {"group": "batch_128_3x100", "method": CBP, "lanes": 1, "over_backprop": Spread(1.2, 1.0, 1.3)}
    assert [row["met"] for row in benchmark.targets([fast, slow])] == [True, False]


def test_table_aligns():
    table = Table("T", ("what", "n"), [("long name", "1"), ("b", "200")], "note")
    assert table.text().splitlines() == ["T", "  what         n", "  long name    1", "  b          200", "  note"]
    assert table.markdown().splitlines()[2:5] == ["| what | n |", "| --- | ---: |", "| long name | 1 |"]


def test_all_cases_can_be_run():
    for cases in groups("launch.benchmarks.workloads:RANDOM_IMAGES").values():
        for case in cases:
            (job,) = case.plan().jobs
            assert len(job.lanes) == case.lanes


def test_random_images_look_like_mnist():
    plan = Case("launch.benchmarks.workloads:RANDOM_IMAGES(batch=128)", "", BACKPROP, 1, 1).plan()
    assert plan.task.spec.input_shape == (784,)
    assert plan.task.schedule.change_every == 60_000 // 128


def test_quick_run_prints_and_writes(command, monkeypatch, tmp_path, capsys):
    few = [Case(REGRESSION, "", method, 2, 20) for method in (BACKPROP, STREAM)]
    monkeypatch.setattr(benchmark, "groups", lambda *_: {"regression": few})
    command("--quick", "--only=regression", "--repeats=2", f"--out={tmp_path / 'new'}")
    printed = capsys.readouterr().out
    assert "matrix product" in printed and "regression: backprop" in printed
    found = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert found["schema"] == benchmark.SCHEMA and found["repeats"] == 2 and found["quick"]
    assert found["command"] == "python -m launch.benchmark --only=regression --quick --repeats=2"
    assert [(r["method"], r["lanes"], r["steps"]) for r in found["cases"]] == [(BACKPROP, 2, 20), (STREAM, 2, 20)]
    rate = found["cases"][0]["lane_steps_per_cpu_second"]
    assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    table = (tmp_path / "new" / "table.md").read_text()
    assert table.startswith("# How fast") and "| regression: backprop | 2 |" in table
    assert str(tmp_path) not in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=regresion"], "did you mean 'regression'"),
        (["--repeats=0"], "--repeats: 0 is not a positive number"),
        (["--data_dir=/no/such/folder", "--only=mnist_3x100"], "not found"),
    ],
)
def test_wrong_input(command, arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        command(*arguments, f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_convolutional_cases_are_judged_by_the_published_rate_and_by_their_data():
    row = {"group": "convnet", "method": CBP, "lanes": 1, "times_published": 1.2, "stream_share": Spread(0.06, 0, 1)}
    assert [found["met"] for found in benchmark.targets([row])] == [True, False]


def test_operations_of_a_step_are_three_forward_passes():
    plan = Case("launch.benchmarks.workloads:RANDOM_PAIRS(batch=10)", "linear", BACKPROP, 1, 1).plan()
    assert step_gflop(plan) == pytest.approx(2 * 3 * 10 * 3072 * 2 / 1e9)
    arithmetic = benchmark._arithmetic(
        {
            "group": "convnet",
            "method": CBP,
            "step_gflop": 2.0,
            "pictures": 100,
            "lane_steps_per_cpu_second": Spread(5.0, 4.0, 6.0),
        },
        [
            {"unit": "GB/s", "per_cpu_second": Spread(1, 1, 1)},
            {"unit": "GFLOP/s", "per_cpu_second": Spread(40, 40, 40)},
        ],
    )
    assert arithmetic == ("convnet: continual_backprop", "500.0", "2.0", "10.0", "25")


@pytest.mark.parametrize("task", ["RANDOM_PAIRS", "RANDOM_INCREMENTS"])
def test_random_pictures_have_the_published_shapes(task):
    stream = Case(f"launch.benchmarks.workloads:{task}", "linear", BACKPROP, 1, 1).plan().task
    data = stream.load()
    assert data.train.dtype == np.uint8 and data.train.shape[1:] == ({"RANDOM_PAIRS": 600}.get(task, 500), 32, 32, 3)
    assert stream.schedule.change_every == {"RANDOM_PAIRS": 3000}.get(task, 25)


def test_every_method_has_a_cost_where_it_fits(monkeypatch):
    from launch.benchmarks import workloads
    from launch.config.methods import METHODS

    monkeypatch.setattr(workloads, "METHODS", {name: METHODS[name] for name in (BACKPROP, "l2", "head_reset")})
    monkeypatch.setattr(workloads, "_fits", lambda case: case.method != "head_reset" or "PAIRS" in case.task)
    found = workloads.method_groups("launch.benchmarks.workloads:RANDOM_IMAGES", quick=True)
    assert [[case.method for case in cases] for cases in found.values()] == [
        [BACKPROP, "l2"], [BACKPROP, "l2"], [BACKPROP, "l2", "head_reset"],
    ]  # fmt: skip
    assert [case.steps for case in next(iter(found.values()))] == [100, 100]
    rows = [
        {"group": group, "method": case.method, "over_backprop": Spread(1.5, 1.0, 2.0)}
        for group, cases in found.items()
        for case in cases
    ]
    table = benchmark._costs(rows)
    assert table.head == ("method", "3x100, batch 1", "3x100, batch 128", "ConvNet, batch 100")
    assert table.rows == [
        (BACKPROP, "1", "1", "1"),
        ("l2", *["1.5 [1, 2]"] * 3),
        ("head_reset", "", "", "1.5 [1, 2]"),
    ]
