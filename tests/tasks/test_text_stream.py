"""Text streams: where periods begin, which windows are shown and measured when, what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.text_stream import AFTER, AGO, BEFORE, HELD_OUT, IN_TASK, TextStream
from tests.tasks.streams import stream

LENGTHS = {"0-2020-01-emacs.txt": 40, "1-2020-02-perl.txt": 3, "2-2020-03-git.txt": 25, "3-2021-04-emacs.txt": 44}


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """Four files; byte `i` of the joined text is `i + 1`, so that a byte tells where it lies."""
    folder, begin = tmp_path_factory.mktemp("text"), 1
    for name, length in LENGTHS.items():
        (folder / name).write_bytes(bytes(range(begin, begin + length)))
        begin += length
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture
def make(folder):
    small = {"context": 4, "batch": 8, "change_every": 6, "evaluation_size": 5, "probe_size": 3}
    small["data_dir"] = str(folder)
    return lambda **fields: TextStream(**(small | fields)).fitted


def places(x):
    """Where inputs begin in the text whose bytes tell their place."""
    x = np.asarray(x)
    assert (np.diff(x) == 1).all()
    return x[..., 0] - 1


@pytest.mark.parametrize(
    ("period", "starts"),
    [
        ("file", (0, 40, 68, 112)),  # the file of three bytes is too short for a window
        ("month", (0, 40, 68, 112)),
        ("quarter", (0, 68, 112)),
        ("year", (0, 68, 112)),
        (50, (0, 50, 112)),
        (28, (0, 28, 56, 84, 112)),
        (None, (0, 40, 68, 112)),
    ],
)
def test_where_periods_begin(make, period, starts):
    task = make(period=period)
    assert tuple(task.load().starts) == starts
    assert task.schedule.length == 6 * (len(starts) - 1)
    assert task.period == period or (period is None and task.period == "file")


def test_one_file_is_cut_and_left_as_it_is(folder):
    task = TextStream(data_dir=str(folder / "3-2021-04-emacs.txt"), period=20, context=4).fitted
    data = task.load()
    assert isinstance(data.text, np.memmap) and data.text.filename == folder / "3-2021-04-emacs.txt"
    assert tuple(data.starts) == (0, 20, 44)
    whole = TextStream(data_dir=str(folder / "3-2021-04-emacs.txt"), context=4).fitted
    assert (whole.period, tuple(whole.load().starts)) == (44, (0, 44))


def test_windows_lie_within_the_period_and_begin_everywhere_in_it(make):
    task = make(period=28, change_every=60)
    data, _, batches = stream(task, jax.random.key(1), 240)
    np.testing.assert_array_equal(data.text, np.arange(1, 113))
    begins = places(batches.x).reshape(4, -1)
    np.testing.assert_array_equal(batches.y, np.asarray(batches.x) + 1)
    for period, seen in enumerate(begins):
        counts = np.bincount(seen - 28 * period, minlength=24)
        assert len(counts) == 24 and ((counts - 20) ** 2).sum() / 20 < 60  # 23 degrees of freedom: 1 in 30,000
    assert np.flatnonzero(batches.boundary).tolist() == [0, 60, 120, 180]


def test_all_text_so_far_is_drawn_from_in_proportion_to_its_length(make):
    task = make(draw="all", change_every=200, period="file")
    _, _, batches = stream(task, jax.random.key(1), 600)
    begins = places(batches.x).reshape(3, -1)
    windows = [set(range(36)), set(range(40, 64)), set(range(68, 108))]
    assert [set(seen) for seen in begins] == [windows[0], windows[0] | windows[1], set().union(*windows)]
    counts = np.bincount(begins[2], minlength=108)
    counts = counts[counts > 0]
    assert ((counts - 16) ** 2).sum() / 16 < 160  # 99 degrees of freedom: 1 in 10,000


def test_an_order_from_the_seed_shows_every_period_once_and_another_seed_another_order(make):
    task = make(period=16, order="seed")
    orders = []
    for seed in (1, 2):
        _, state, batches = stream(task, jax.random.key(seed), 42)
        seen = places(batches.x).reshape(7, -1) // 16
        assert (seen == seen[:, :1]).all() and sorted(seen[:, 0]) == list(range(7))
        np.testing.assert_array_equal(state.order, seen[:, 0])
        orders.append(tuple(seen[:, 0]))
    assert orders[0] != orders[1]
    np.testing.assert_array_equal(make(period=16).init(jax.random.key(1), task.load()).order, np.arange(7))


def test_any_step_is_rebuilt_from_its_number(make):
    task, key = make(period=16), jax.random.key(2)
    whole, part = stream(task, key, 42)[2], stream(task, key, 6, clock=24)[2]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(one[24:30], other)


def shown(evaluation):
    """Where windows that count begin, by metric."""
    found, batch = {}, jax.jit(evaluation.batch)
    for i in range(int(evaluation.batches)):
        x, targets = batch(i)
        for name, y in targets.items():
            counts = np.asarray(y) >= 0
            assert (counts == counts[:, :1]).all()
            np.testing.assert_array_equal(np.asarray(y)[counts], (np.asarray(x) + 1)[counts])
            found[name] = found.get(name, []) + places(np.asarray(x)[counts[:, 0]]).tolist()
    return found


def test_what_is_measured_of_which_period_and_when(make, monkeypatch):
    monkeypatch.setattr("tasks.text_stream._EVALUATED_AT_ONCE", 2)
    task = make(period=16, evaluations_per_task=2)
    data = task.load()
    state, spread = task.init(jax.random.key(0), data), np.array([0, 2, 4, 7, 9])
    (before,) = task.previews(state, jnp.int32(18), data)
    assert shown(before) == {BEFORE: (48 + spread).tolist()}
    (within,) = task.evaluations(state, jnp.int32(21), data)
    nothing = {name: [] for name in (AFTER, *AGO.values())}
    assert int(within.batches) == 3 and shown(within) == {IN_TASK: (48 + spread).tolist()} | nothing
    (end,) = task.evaluations(state, jnp.int32(42), data)
    at = {IN_TASK: 96, AFTER: 96, AGO[1]: 80, AGO[5]: 16}
    assert shown(end) == {name: (first + spread).tolist() for name, first in at.items()} | {AGO[20]: []}
    assert all(each.measure == "bits" for each in (before, within, end))
    probe = task.probe_batches(state, jnp.int32(18), data)[""]
    assert places(probe).tolist() == [48, 52, 56]


def test_a_trial_is_on_text_held_out_always_the_same_and_when_it_is_due(make):
    task = make(held_out="*emacs*", period="file", context=4, trial_updates=3, trial_every=2)
    data = task.load()
    assert tuple(data.starts) == (0, 28) and len(data.text) == 28 and len(data.held_out) == 84
    assert not set(np.asarray(data.text).tolist()) & set(np.asarray(data.held_out).tolist())
    state = task.init(jax.random.key(0), data)
    (one,), (two,) = (task.trials(state, jnp.int32(clock), data) for clock in (0, 6))
    assert (one.metric, int(one.updates), int(two.updates)) == (HELD_OUT, 3, 0)
    np.testing.assert_array_equal(one.batch(2)[0], two.batch(2)[0])
    x, y = one.batch(1)
    assert np.isin(x, data.held_out).all() and x.shape == (8, 4) and (np.asarray(one.batch(0)[0]) != x).any()
    np.testing.assert_array_equal(y[:, :-1], x[:, 1:])
    assert make().trials(state, jnp.int32(0), data) == ()


def test_a_period_is_by_default_as_long_as_its_text_is_shown_once(make):
    assert make(period=28, change_every=None, batch=2).change_every == 4  # 28 bytes, 2 x 4 in a step
    assert make(period=28, change_every=None, batch=2, evaluations_per_task=3).change_every == 3


def test_what_a_learner_is_told(make):
    task = make(period=28)
    spec = task.spec
    assert (spec.input_shape, spec.target_shape, spec.outputs, spec.input_type) == ((4,), (4,), 256, "int32")
    assert spec.failure[BEFORE] == spec.failure[HELD_OUT] == 8 and spec.failure["loss"] == math.log(256)
    assert task.note == "4 periods of 28 bytes, 112 bytes"
    assert make(period="file", draw="all").note == "3 periods by file, 112 bytes, drawn from all so far"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"data_dir": None}, "data_dir: the text is missing; give a folder of .txt files, or one file, as"),
        ({"data_dir": "/nowhere"}, "data_dir: there is no folder or file /nowhere"),
        ({"data_dir": "{folder}/cache"}, "data_dir: there is no folder or file|data_dir: .*/cache holds no .txt file"),
        ({"data_dir": "{folder}/3-2021-04-emacs.txt", "period": "file"}, "period: got 'file', one file is cut into"),
        ({"data_dir": "{bad}/nul"}, ".*/nul/a.txt: not text, byte 2 is 0"),
        ({"data_dir": "{bad}/latin"}, ".*/latin/a.txt: not text in UTF-8, at bytes 0 to 3"),
        ({"data_dir": "{bad}/dates", "period": "month"}, "period: files of .*/dates do not sort by name as by month"),
        ({"data_dir": "{bad}/nodate", "period": "year"}, "period: got 'year', notes.txt has no date such as 2024-05"),
        ({"period": 113}, "period: got 113 bytes, the text has 112"),
        ({"period": "week"}, "period: got 'week', allowed are file, month, quarter, year and a number of bytes"),
        ({"period": 0}, "period: got 0, allowed are"),
        ({"context": 112}, "context: got 112, the text has 112 bytes"),
        ({"held_out": "*perl*", "context": 4}, "context: got 4, the text held out has 3 bytes"),
        ({"held_out": "*ruby*"}, "held_out: '\\*ruby\\*' is the name of no file in"),
        ({"held_out": "*"}, "held_out: '\\*' is the name of all files in"),
        ({"order": "size"}, "order: got 'size', allowed are time, seed"),
        ({"draw": "some"}, "draw: got 'some', allowed are period, all"),
        ({"change_every": 6, "evaluations_per_task": 4}, "evaluations_per_task: got 4, which does not divide the 6"),
        ({"change_every": 2**30}, "change_every: got 1073741824, 3 periods allow 2147483647 in all"),
    ],
)
def test_wrong_fields(make, folder, tmp_path, fields, told):
    written = {"nul/a": b"ab\0", "latin/a": b"a\xe9b", "dates/a-2021-05": b"abcdefg", "dates/b-2021-04": b"abcdefg"}
    for name, text in (written | {"nodate/notes": b"abcdefg"}).items():
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
    where = {k: v.format(folder=folder, bad=tmp_path) if isinstance(v, str) else v for k, v in fields.items()}
    with pytest.raises(ValueError, match=f"^(?:{told})"):
        make(**where)
