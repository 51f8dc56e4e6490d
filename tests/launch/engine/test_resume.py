"""A run that is stopped anywhere, and goes on from disk, ends in the same bits as one that was never stopped."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from launch.config.experiment import Experiment, resolve
from launch.config.methods import METHODS
from launch.config.registry import TASKS
from launch.engine import execution, scheduler
from launch.engine.checkpoint_policy import Place
from launch.engine.execution import run_units
from launch.engine.stopping import Stop, Stopped
from launch.engine.unit_of_work import unit_of
from launch.errors import InputError
from launch.storage import checkpoint
from launch.storage.durable import StorageError
from launch.storage.replacements import PREFIX
from launch.storage.run_folder import CHECKPOINTS, DONE, METRICS, RUN
from tests.launch import tiny
from tests.marks import slow_unless

ROOT = Path(__file__).parents[3]
EVENTFUL = {
    "continual_backprop": "(maturity_threshold=3,replacement_rate=0.2,optimizer=adam,log_size=50)",
    "redo": "(period=8,threshold=1,optimizer=adam,log_size=50)",
    "shrink_and_perturb": "(every=3,optimizer=momentum)",
    "published_shrink_and_perturb": "(noise_every=7)",
}
CHUNKS = (2, 5, 10)
STEPS, STOP_AFTER = 60, {2: 13, 5: 5, 10: 3}


def test_all_tasks_are_among_them():
    for pairs, later in ((tiny.PAIRS, ()), (tiny.QUICK, tiny.LATER)):
        wanted = {spec.make for spec in TASKS.values()} - {TASKS[name].make for name in later}
        assert {TASKS[name].make for name, _ in pairs} == wanted
    assert {method for _, method in tiny.PAIRS} == set(tiny.METHOD_NAMES)
    assert {"continual_backprop", *EVENTFUL} - {"published_shrink_and_perturb"} <= {method for _, method in tiny.QUICK}


def chunks_of(task, method):
    """The chunk lengths at which a method is tried on a task: the one of `make test` comes first."""
    first = CHUNKS[tiny.METHOD_NAMES.index(method) % 3] if task in tiny.LEAD else CHUNKS[-1]
    return sorted(CHUNKS, key=lambda chunk: chunk != first)[: 3 if task in tiny.LEAD and method in EVENTFUL else 1]


def is_quick(task, method, chunk):
    return (task, method) in tiny.QUICK and chunk == chunks_of(task, method)[0]


@pytest.mark.parametrize(
    ("task", "method", "chunk"),
    slow_unless(is_quick, [(*pair, chunk) for pair in tiny.PAIRS for chunk in chunks_of(*pair)]),
)
@jax.debug_nans(True)
def test_every_method_on_every_task_stopped_and_gone_on_is_the_run_never_stopped(
    task, method, chunk, images, tmp_path, monkeypatch
):
    """All is built anew from what is on disk.

    With `jax_debug_nans`: nothing that a program returns is NaN, in a run that does not diverge. From new lanes, from
    those of a chunk and from those of a checkpoint the same program runs: one a plan.
    """
    programs, compiled_chunk = [], execution.compiled_chunk
    monkeypatch.setattr(execution, "compiled_chunk", lambda *of: programs.append(compiled_chunk(*of)) or programs[-1])
    of = tiny.small(task, images)
    asked = Experiment(methods=method + EVENTFUL.get(method, ""), seeds=(0, 1), steps=STEPS, bin=20, **of)
    plan, again = resolve(asked), resolve(asked)
    (job,) = plan.jobs
    unit = unit_of(plan, job, job.lanes, len(job.lanes), chunk)
    places = {name: Place(tmp_path / name / CHECKPOINTS, tiny.policy(25)) for name in ("whole", "cut")}
    (whole,) = run_units(plan, [unit], places["whole"])
    _stop_at(STOP_AFTER[chunk], plan, unit, places["cut"])
    assert [int(path.name) for path in (places["cut"].folder / unit.name).glob("[0-9]*")][-1] < STEPS
    (cut,) = run_units(again, [unit_of(again, again.jobs[0], job.lanes, len(job.lanes), chunk)], places["cut"])
    assert {name: tiny.raw(values) for name, values in cut.items()} == {n: tiny.raw(v) for n, v in whole.items()}
    assert tiny.assert_same_ends(tmp_path / "cut", tmp_path / "whole") > 10
    if "log_size" in EVENTFUL.get(method, ""):
        assert (whole[f"{PREFIX}written"] > 3).all()
    assert [program._cache_size() for program in dict.fromkeys(programs)] == [1, 1]


def _stop_at(chunks, plan, unit, place):
    stop, seen = Stop(), []

    def report(label, lane_steps):
        seen.append(lane_steps)
        if len(seen) == chunks + 1:
            stop.request(signal.SIGINT)

    with pytest.raises(Stopped) as reason:
        run_units(plan, [unit], place, stop=stop, report=report)
    assert reason.value.status == 130
    assert sum(seen) == chunks * unit.chunk * len(unit.lanes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny run, never stopped: folders by what was asked for."""
    made = {}

    def make(**fields):
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            tiny.run(tiny.experiment(**fields), made[key])
        return made[key]

    return make


@pytest.mark.parametrize("reports", [2, 7, 13, 25])
def test_a_run_of_several_units_stopped_anywhere_ends_in_the_same_files(whole, tmp_path, reports):
    """Reports come once a chunk and once a unit; there are two units, of two lanes and of one filled up."""
    asked = {"lanes_per_batch": 2}
    assert tiny.stopped(tiny.experiment(**asked), tmp_path, reports)
    assert not (tmp_path / "backprop" / DONE).exists()
    assert (tmp_path / "backprop" / RUN).exists()
    runs = tiny.run(tiny.experiment(**asked), tmp_path)
    assert runs["backprop"].meta["finished"]
    tiny.assert_same_ends(tmp_path, whole(**asked))


def test_stopped_at_every_chunk_one_after_the_other(whole, tmp_path):
    """Two reports a start: that of what is there, and that of one chunk."""
    starts = 1
    while tiny.stopped(tiny.experiment(steps=30), tmp_path, 2):
        starts += 1
    assert starts == 6
    tiny.assert_same_ends(tmp_path, whole(steps=30))


def test_two_workers_with_replacement_logs_stopped_and_gone_on_by_one(tmp_path):
    """Of so many chunks that the word to stop comes before the end."""
    asked = Experiment(
        "slowly_changing_regression(change_every=20)",
        "continual_backprop(maturity_threshold=3,replacement_rate=0.2,log_size=20)",
        (0, 1, 2),
        steps=3000,
        bin=1000,
        chunk=5,
        lanes_per_batch=2,
        network="mlp(widths=(4,))",
    )
    tiny.run(asked, tmp_path / "whole", policy=tiny.policy(1000))
    assert tiny.stopped(asked, tmp_path / "cut", 9, workers=2, policy=tiny.policy(1000))
    runs = tiny.run(asked, tmp_path / "cut", policy=tiny.policy(1000))
    assert (runs["continual_backprop"].lives["step"] > 0).any()
    tiny.assert_same_ends(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("first", [40, 37])
def test_a_longer_run_goes_on_from_the_end_as_if_it_had_been_asked_for_at_once(whole, tmp_path, first):
    """Also from a length that ends within a chunk: that part is done again with the whole chunk."""
    tiny.run(tiny.experiment(steps=first), tmp_path)
    reported = []
    tiny.run(tiny.experiment(), tmp_path, report=lambda label, steps: reported.append(steps))
    assert reported[0] == 3 * (first - first % 5)
    assert sum(reported) == 3 * 60
    tiny.assert_same_ends(tmp_path, whole())


def test_a_longer_run_that_ends_within_a_chunk(whole, tmp_path):
    tiny.run(tiny.experiment(steps=33), tmp_path)
    assert tiny.stopped(tiny.experiment(steps=58), tmp_path, 3)
    tiny.run(tiny.experiment(steps=58), tmp_path)
    tiny.assert_same_ends(tmp_path, whole(steps=58))


def test_new_seeds_run_beside_the_old_ones(whole, tmp_path):
    """The units of the first launch stay as they are; the new lanes are a unit of their own."""
    tiny.run(tiny.experiment(seeds=(0, 1, 2)), tmp_path)
    before = tiny.snapshot(tmp_path / "backprop" / CHECKPOINTS)
    runs = tiny.run(tiny.experiment(seeds=(0, 1, 2, 3, 4)), tmp_path)
    after = tiny.snapshot(tmp_path / "backprop" / CHECKPOINTS)
    changed = {path for path in before if before[path] != after[path]}
    assert all(path.name in (CHECKPOINTS, "LOCK") for path in changed)
    np.testing.assert_array_equal(runs["backprop"].seeds, [0, 1, 2, 3, 4])
    old, new = (tiny.run(tiny.experiment(seeds=seeds), None)["backprop"] for seeds in ((0, 1, 2), (3, 4)))
    for name, values in runs["backprop"].metrics.items():
        np.testing.assert_array_equal(values, np.concatenate([old.metrics[name], new.metrics[name]]))


@pytest.mark.parametrize("reports", slow_unless(lambda reports: reports == 12, [0, 4, 12, 17]))
def test_longer_and_more_seeds_at_once_also_after_a_stop(tmp_path, reports):
    for name, stop in (("whole", 0), ("cut", reports)):
        tiny.run(tiny.experiment(steps=33), tmp_path / name)
        if stop:
            assert tiny.stopped(tiny.experiment(seeds=(0, 1, 2, 3)), tmp_path / name, stop)
        tiny.run(tiny.experiment(seeds=(0, 1, 2, 3)), tmp_path / name)
    tiny.assert_same_ends(tmp_path / "cut", tmp_path / "whole")
    alone = tiny.run(tiny.experiment(), None)["backprop"].metrics["squared_error"]
    with np.load(tmp_path / "cut" / "backprop" / METRICS) as found:
        np.testing.assert_array_equal(found["squared_error"][:3], alone)


def test_seeds_added_twice_with_a_stop_between(tmp_path):
    """The second launch was stopped; the third asks for more, and cuts the new lanes anew."""
    tiny.run(tiny.experiment(), tmp_path)
    assert tiny.stopped(tiny.experiment(seeds=(0, 1, 2, 3, 4)), tmp_path, 6)
    runs = tiny.run(tiny.experiment(seeds=(0, 1, 2, 3, 4, 5)), tmp_path)
    old, new = (tiny.run(tiny.experiment(seeds=seeds), None)["backprop"] for seeds in ((0, 1, 2), (3, 4, 5)))
    np.testing.assert_array_equal(runs["backprop"].seeds, range(6))
    found = runs["backprop"].metrics["squared_error"]
    np.testing.assert_array_equal(found, np.concatenate([one.metrics["squared_error"] for one in (old, new)]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    tiny.run(tiny.experiment(), folder)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    assert tiny.stopped(tiny.experiment(), folder, 6)
    return folder


OTHER = [
    ({"seeds": (0, 1)}, ["3 lanes there, 2 asked"]),
    ({"seeds": (0, 1, 3)}, ["other seeds"]),
    ({"set": ("step_size=0.02",)}, ["other seeds or numbers"]),
    ({"sweep": ("step_size=0.01,0.02",)}, ["3 lanes there, 6 asked"]),
    ({"bin": 10}, ["bin 20 there, 10 asked"]),
    ({"methods": "backprop(optimizer=adam)"}, ["optimizer sgd there, adam asked"]),
    ({"methods": "backprop=l2"}, ["method backprop there, l2 asked"]),
    ({"preset": "published"}, ["preset corrected there, published asked"]),
    ({"steps": 50}, ["steps 60 there, 50 asked"]),
    ({"chunk": 2}, ["chunk 5 there, 2 asked"]),
    ({"lanes_per_batch": 1}, ["lanes_per_batch 3 there, 1 asked"]),
    ({"steps": 50, "bin": 10, "preset": "published"}, ["steps 60", "bin 20", "preset corrected"]),
]


@pytest.mark.parametrize("state", ["finished", "half"])
@pytest.mark.parametrize(("change", "words"), OTHER)
def test_any_other_change_is_refused_with_what_differs_and_nothing_changes(request, state, change, words):
    folder = request.getfixturevalue(state)
    before = tiny.snapshot(folder)
    with pytest.raises(InputError, match=r"^--workdir: .* holds another run \(") as error:
        tiny.run(tiny.experiment(**change), folder)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert tiny.snapshot(folder) == before


def test_another_task_or_network_is_refused(finished):
    before = tiny.snapshot(finished)
    for asked, word in (
        (
            dataclasses.replace(tiny.experiment(), task=f"{tiny.TASK}(change_every=40)"),
            "task.change_every 20 there, 40",
        ),
        (dataclasses.replace(tiny.experiment(), network="linear"), "network Line("),
    ):
        with pytest.raises(InputError, match=r"holds another run") as error:
            tiny.run(asked, finished)
        assert word in str(error.value)
    assert tiny.snapshot(finished) == before


def test_what_decides_no_number_may_differ(finished):
    """Order of seeds, lengths that say the same, how often checkpoints are written, words about the tuning."""
    for change in ({"seeds": (2, 0, 1)}, {"steps": None, "tasks": 3}, {"tuned_on": "other seeds"}, {"chunk": None}):
        runs = tiny.run(tiny.experiment(**change), finished, policy=tiny.policy(7))
        np.testing.assert_array_equal(runs["backprop"].seeds, [0, 1, 2])


def test_a_finished_run_is_read_and_nothing_is_written(finished, monkeypatch):
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("ran again"))
    before = tiny.snapshot(finished)
    runs = tiny.run(tiny.experiment(), finished)
    assert runs["backprop"].metrics["squared_error"].shape == (3, 3)
    assert tiny.snapshot(finished) == before


def test_units_that_are_over_are_not_run_again_when_the_end_was_lost(finished, tmp_path, monkeypatch):
    """As when the machine goes between the last checkpoint and the metrics."""
    shutil.copytree(finished, tmp_path / "copy")
    for name in (DONE, METRICS):
        (tmp_path / "copy" / "backprop" / name).unlink()
    monkeypatch.setattr(scheduler, "run_units", lambda *_: pytest.fail("ran again"))
    tiny.run(tiny.experiment(), tmp_path / "copy")
    tiny.assert_same_ends(tmp_path / "copy", finished)


def test_resume_never_and_must(finished, tmp_path):
    before = tiny.snapshot(finished)
    with pytest.raises(InputError, match=r"^--resume=never: .*backprop holds a run"):
        tiny.run(tiny.experiment(), finished, resume="never")
    with pytest.raises(InputError, match=r"^--resume=must: there is no run in .*new"):
        tiny.run(tiny.experiment(), tmp_path / "new", resume="must")
    with pytest.raises(InputError, match=r"^--resume: unknown 'nevr' \(did you mean 'never'\?\)"):
        tiny.run(tiny.experiment(), tmp_path / "new", resume="nevr")
    assert tiny.run(tiny.experiment(), finished, resume="must")["backprop"].meta["finished"]
    assert tiny.snapshot(finished) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"keep": 0}, []),
        ({"keep": 1}, [60]),
        ({"keep": 2}, [50, 60]),
        ({"keep": None}, [10, 20, 30, 40, 50, 60]),
        ({"keep": 1, "at": (15, 30)}, [15, 30, 60]),
        ({"keep": 0, "at": (15, 30)}, [15, 30]),
    ],
)
def test_what_is_kept_once_the_run_is_over(tmp_path, fields, steps):
    tiny.run(tiny.experiment(), tmp_path, policy=tiny.policy(10, **fields))
    assert sorted(int(path.name) for path in tiny.checkpoints(tmp_path).values()) == steps


def test_checkpoints_asked_for_stay_when_the_run_goes_on_without_the_flag(tmp_path):
    assert tiny.stopped(tiny.experiment(), tmp_path, 6, policy=tiny.policy(5, keep=1, at=(10,)))
    tiny.run(tiny.experiment(), tmp_path, policy=tiny.policy(5, keep=1))
    tiny.run(tiny.experiment(steps=80), tmp_path, policy=tiny.policy(5, keep=1))
    assert sorted(int(path.name) for path in tiny.checkpoints(tmp_path).values()) == [10, 80]


@pytest.mark.parametrize(("at", "words"), [((12,), "12 is not a multiple of 5"), ((65,), "up to 60"), ((0,), "0 is")])
def test_a_checkpoint_where_none_can_be_is_refused(tmp_path, at, words):
    with pytest.raises(InputError, match=r"^--checkpoint_at: ") as error:
        tiny.run(tiny.experiment(), tmp_path / "new", policy=tiny.policy(at=at))
    assert words in str(error.value)
    assert not (tmp_path / "new").exists()


def test_without_checkpoints_a_finished_run_cannot_grow_and_says_so(tmp_path):
    tiny.run(tiny.experiment(), tmp_path, policy=tiny.policy(keep=0))
    before = tiny.snapshot(tmp_path)
    with pytest.raises(InputError, match=r"holds no checkpoints to go on from; they were not kept \(--keep\)"):
        tiny.run(tiny.experiment(steps=80), tmp_path)
    assert tiny.snapshot(tmp_path) == before


def copied(half, tmp_path):
    folder = Path(shutil.copytree(half, tmp_path / "copy"))
    newest = max(tiny.checkpoints(folder).values(), key=lambda path: int(path.name))
    return folder, newest


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_taken(half, whole, tmp_path, capsys):
    folder, newest = copied(half, tmp_path)
    assert len(tiny.checkpoints(folder)) == 2
    tiny.damage(newest)
    tiny.run(tiny.experiment(), folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(newest) in said and "arrays.npz is not as it was written" in said
    tiny.assert_same_ends(folder, whole())


def test_no_readable_checkpoint_is_an_error_and_nothing_is_deleted(half, tmp_path):
    folder, _ = copied(half, tmp_path)
    for path in tiny.checkpoints(folder).values():
        tiny.damage(path)
    before = {path: value[1] for path, value in tiny.snapshot(folder).items() if path.name != "LOCK"}
    with pytest.raises(InputError, match="no readable checkpoint, nothing was deleted") as error:
        tiny.run(tiny.experiment(), folder)
    assert "\n" not in str(error.value)
    assert {path: value[1] for path, value in tiny.snapshot(folder).items() if path.name != "LOCK"} == before


def test_a_checkpoint_of_another_version_is_told_in_one_line(half, whole, tmp_path, capsys, monkeypatch):
    folder, _ = copied(half, tmp_path)
    here = checkpoint.format_versions()
    monkeypatch.setattr("launch.engine.execution.format_versions", lambda: here | {"jax": "99.0"})
    tiny.run(tiny.experiment(), folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"was written by another version (jax {here['jax']}, now 99.0)" in said
    tiny.assert_same_ends(folder, whole())


def test_a_checkpoint_of_another_structure_is_refused_with_what_differs(half, tmp_path, monkeypatch):
    folder, _ = copied(half, tmp_path)
    before = {path: value[1] for path, value in tiny.snapshot(folder).items() if path.name != "LOCK"}

    class More(tiny.State):
        pass

    def init(self, key, data):
        return {"key": key, "weights": np.ones((2, 1), np.float32), "new": np.zeros(3, np.float32)}

    def following(self, state, clock, data):
        new, batch = original(self, tiny.State(state["key"], state["weights"]), clock, data)
        return {"key": new.key, "weights": new.weights, "new": state["new"]}, batch

    original = tiny.Drift.next
    monkeypatch.setattr(tiny.Drift, "init", init)
    monkeypatch.setattr(tiny.Drift, "next", following)
    with pytest.raises(InputError, match="another structure than this program needs") as error:
        tiny.run(tiny.experiment(), folder)
    assert "task/new: saved nothing, needed float32[3,3]" in str(error.value)
    assert {path: value[1] for path, value in tiny.snapshot(folder).items() if path.name != "LOCK"} == before


def test_a_disk_that_fills_up_is_told_and_the_last_good_checkpoint_goes_on(whole, tmp_path, monkeypatch):
    written = []
    original = checkpoint._write_files

    def full(folder, contents):
        written.append(contents.step)
        if contents.step == 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(folder, contents)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_files", full)
        with pytest.raises(StorageError) as error:
            tiny.run(tiny.experiment(), tmp_path)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ("/30: ", "disk full", "last good one is", "/20"))
    assert written == [10, 20, 30]
    tiny.run(tiny.experiment(), tmp_path)
    tiny.assert_same_ends(tmp_path, whole())


COMMAND = [
    *tiny.TRAIN, f"--task={tiny.TASK}", f"--network={tiny.NETWORK}", "--methods=backprop",
    "--seeds=4", "--bin=1000", "--chunk=500", "--change_every=1000", "--lanes_per_batch=2", "--checkpoint_every=2000",
]  # fmt: skip


@pytest.mark.parametrize(("number", "status", "workers"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 1)])
def test_a_real_process_writes_checkpoints_and_leaves_with_the_shells_status(tmp_path, number, status, workers):
    """A length that nobody would wait for; then a short one of the same beginning, gone on and whole."""
    command = [*COMMAND, f"--workers={workers}"]
    place = [f"--workdir={tmp_path / 'cut'}"]
    process = subprocess.Popen([*command, *place, "--steps=2000000000"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    units = 2 if workers == 2 else 1
    tiny.wait_until(lambda: len({path.parent for path in tiny.checkpoints(tmp_path).values()}) == units, process)
    process.send_signal(number)
    said = process.communicate(timeout=tiny.HANG)[1]
    assert process.returncode == status
    assert said == f"{signal.Signals(number).name}: writing checkpoints; once more to end at once\n"
    steps = [int(path.name) for path in tiny.checkpoints(tmp_path).values()]
    assert max(steps) >= 2000 and not list(tmp_path.glob(f"**/{METRICS}"))


def test_the_module_knows_what_it_promises():
    """Every method and task of the registry is under the test above."""
    assert len(METHODS) * len(TASKS) >= 20
    assert set(EVENTFUL) <= set(METHODS)
    assert launch.run is scheduler.run
