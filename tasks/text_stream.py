"""Text that changes with time: a language model of bytes, kept up to date period by period."""

import codecs
import dataclasses
import functools
import itertools
import math
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.base import MOST_STEPS, Batch, Evaluation, Schedule, Spec, Task, Trial, check_fields
from tasks.data import cache_folder, write_whole

BYTES = 256
AGO = {1: "bits_per_byte_one_period_ago", 5: "bits_per_byte_five_periods_ago", 20: "bits_per_byte_twenty_periods_ago"}
"""What is measured on earlier periods, by how many periods ago they were learned."""
BEFORE, AFTER, HELD_OUT = "bits_per_byte_before", "bits_per_byte", "bits_per_byte_held_out"
IN_TASK = AFTER + "_in_task"
DATES = {"month": 1, "quarter": 3, "year": 12}
"""Months of the periods that go by the dates of files."""

_DATE = re.compile(r"(?<!\d)(\d{4})-(0[1-9]|1[0-2])(?!\d)")
_DEFAULT_PERIOD = 100_000
_EVALUATED_AT_ONCE = 16
_READ_AT_ONCE = 1 << 20
_ORDER, _WINDOWS, _TRIAL = 0, 1, 2


class TextState(NamedTuple):
    """Where a stream is.

    Attributes:
        key: typed key of the stream; all chance follows from it and the clock.
        order: int32 `[periods]`, the periods as they come.
        ends: int32 `[periods + 1]`, how many windows the periods before each have, in that order.
    """

    key: jax.Array
    order: jax.Array
    ends: jax.Array


class TextData(NamedTuple):
    """Bytes uint8 `[bytes]`; where each period begins, and last the end, int32 `[periods + 1]`; the text held out."""

    text: jax.Array | np.ndarray
    starts: jax.Array | np.ndarray
    held_out: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class TextStream(Task):
    """Text in the order of time: predict every next byte, and keep doing it as the text moves on.

    A period of the text is a task. At every step `batch` windows of `context + 1` bytes are drawn, uniformly and with
    replacement, from the current period (`draw="period"`) or from all text up to its end (`draw="all"`); no window
    reaches over the end of a period. The inputs are the first `context` bytes of a window as tokens 0 to 255, the
    labels the byte after each. Nothing but `Batch.boundary` tells of a change. Every period is learned for the same
    number of steps, however long it is.

    In bits per byte, on `evaluation_size` windows evenly spread over a period (in order of time or not, those of
    `bits_per_byte_before` have never been shown):

        bits_per_byte_before       as the period begins, before anything is learned from it
        bits_per_byte              at its end
        bits_per_byte_in_task      several times within it
        bits_per_byte_*_ago        at its end, on the periods learned 1, 5 and 20 periods before
        bits_per_byte_held_out     as it begins: the mean over `trial_updates` updates of a clone on held-out text, by
                                   Adam with step size 1e-3, always on the same windows; before the first period the
                                   clone is one of a fresh network

    Differs from a model in production in that windows begin with no context at all.

    Attributes:
        data_dir: folder of `.txt` files in UTF-8 that sort by name as they come in time, or one such file.
        period: number of bytes (what is left over joins the last), `"file"`, or `"month"`, `"quarter"`, `"year"` of the
            date in a file's name (`2024-05`). Periods too short for a window join the next. `None`: a file of a folder,
            100,000 bytes of one file.
        order: of the periods: `"time"`, that of the names; `"seed"`, a permutation that follows from the seed, as for a
            folder with a text in each of many languages.
        draw: where windows are drawn from.
        context: bytes that a window predicts from.
        batch: windows per step.
        change_every: steps per period; `None`: as many as show a period of mean length once.
        held_out: pattern of names of files that are no part of the stream, as `*emacs*`; empty for none.
        trial_updates: updates of a clone on the held-out text.
        trial_every: periods from one trial to the next.
        evaluations_per_task: how often the current period is measured within it; has to divide its steps.
        evaluation_size: windows that are measured of a period.
        probe_size: windows of the upcoming period that the diagnostics see.

    Raises:
        ValueError: a field is none of what is allowed, there is no text, or it does not fit the fields.
    """

    data_dir: str | None = None
    period: int | str | None = None
    order: Literal["time", "seed"] = "time"
    draw: Literal["period", "all"] = "period"
    context: int = 128
    batch: int = 16
    change_every: int | None = None
    held_out: str = ""
    trial_updates: int = 100
    trial_every: int = 5
    evaluations_per_task: int = 1
    evaluation_size: int = 64
    probe_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("context", "batch", "change_every", "trial_updates", "trial_every")
        sizes += ("evaluations_per_task", "evaluation_size", "probe_size")
        check_fields(self, sizes, ("change_every",), choices={"order": ("time", "seed"), "draw": ("period", "all")})
        words = ("file", *DATES)
        whole = isinstance(self.period, int) and not isinstance(self.period, bool) and self.period > 0
        if not (self.period is None or whole or self.period in words):
            raise ValueError(f"period: got {self.period!r}, allowed are {', '.join(words)} and a number of bytes")
        if self.change_every is not None and self.change_every % self.evaluations_per_task:
            raise ValueError(
                f"evaluations_per_task: got {self.evaluations_per_task}, which does not divide the "
                f"{self.change_every} steps of a period"
            )

    @functools.cached_property
    def fitted(self) -> "TextStream":  # pyright: ignore[reportIncompatibleMethodOverride]
        facts = self._facts
        return dataclasses.replace(self, period=facts.period, change_every=self.schedule.change_every)

    @property
    def spec(self) -> Spec:
        names = (BEFORE, AFTER, IN_TASK, *AGO.values(), HELD_OUT)
        failure = {"online_accuracy": 1 / BYTES, "loss": math.log(BYTES), **dict.fromkeys(names, math.log2(BYTES))}
        shape = (self.context,)
        return Spec(shape, BYTES, "cross_entropy", self.batch, failure, input_type="int32", target_shape=shape)

    @property
    def schedule(self) -> Schedule:
        facts, each = self._facts, self.evaluations_per_task
        shown = facts.starts[-1] / facts.periods / (self.batch * self.context)
        change_every = self.change_every or each * max(1, round(shown / each))
        length = facts.periods * change_every
        if length > MOST_STEPS:
            raise ValueError(f"change_every: got {change_every}, {facts.periods} periods allow {MOST_STEPS} in all")
        return Schedule(change_every, change_every // each, change_every, length)

    @property
    def note(self) -> str:
        facts = self._facts
        kind = f"periods of {facts.period:,} bytes" if isinstance(facts.period, int) else f"periods by {facts.period}"
        return f"{facts.periods} {kind}, {facts.starts[-1]:,} bytes" + ", drawn from all so far" * (self.draw == "all")

    def load(self) -> TextData:
        """The text, memory-mapped; of several files, joined once in the user's cache folder."""
        facts = self._facts
        return TextData(_joined(facts.files), np.asarray(facts.starts, np.int32), _joined(facts.held_out))

    def init(self, key: jax.Array, data: TextData) -> TextState:
        periods = len(data.starts) - 1
        order = jnp.arange(periods, dtype=jnp.int32)
        if self.order == "seed":
            order = jax.random.permutation(jax.random.fold_in(key, _ORDER), order)
        windows = jnp.diff(jnp.asarray(data.starts))[order] - self.context
        return TextState(key, order, jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(windows, dtype=jnp.int32)]))

    def next(self, state: TextState, clock: jax.Array, data: TextData) -> tuple[TextState, Batch]:
        period, step = jnp.divmod(clock, self.schedule.change_every)
        key = jax.random.fold_in(jax.random.fold_in(state.key, _WINDOWS), clock)
        first = state.ends[period] if self.draw == "period" else 0
        x, y = self._windows(state, data, jax.random.randint(key, (self.batch,), first, state.ends[period + 1]))
        return state, Batch(x, y, step == 0, jnp.zeros([], bool))

    def evaluations(self, state: TextState, clock: jax.Array, data: TextData) -> tuple[Evaluation, ...]:
        """Bits per byte on the period of step `clock - 1`, and at its end on earlier ones."""
        period, over = (clock - 1) // self.schedule.change_every, self.ends_task(clock)
        periods = period - jnp.array([0, *AGO])
        counted = {IN_TASK: (0, True), AFTER: (0, over)}
        counted |= {name: (place, True) for place, name in enumerate(AGO.values(), 1)}
        return (self._measured(state, data, periods, jnp.where(over, len(periods), 1), counted),)

    def previews(self, state: TextState, clock: jax.Array, data: TextData) -> tuple[Evaluation, ...]:
        """Bits per byte on the period that starts at `clock`."""
        periods = jnp.reshape(clock // self.schedule.change_every, 1)
        return (self._measured(state, data, periods, 1, {BEFORE: (0, True)}),)

    def trials(self, state: TextState, clock: jax.Array, data: TextData) -> tuple[Trial, ...]:
        """Held-out text, the same windows before every period."""
        if not self.held_out:
            return ()
        period, windows = clock // self.schedule.change_every, len(data.held_out) - self.context

        def batch(i):
            key = jax.random.fold_in(jax.random.fold_in(state.key, _TRIAL), i)
            return self._cut(data.held_out, jax.random.randint(key, (self.batch,), 0, windows))

        return (Trial(HELD_OUT, jnp.where(period % self.trial_every == 0, self.trial_updates, 0), batch),)

    def probe_batches(self, state: TextState, clock: jax.Array, data: TextData) -> dict[str, jax.Array]:
        """`probe_size` windows of the period that starts at `clock`, evenly spread, `[probe_size, context]`."""
        period, index = clock // self.schedule.change_every, jnp.arange(self.probe_size)
        return {"": self._windows(state, data, self._spread(state, period, index, self.probe_size))[0]}

    def _measured(self, state: TextState, data: TextData, periods, how_many, counted) -> Evaluation:
        """Bits per byte on the first `how_many` of some periods, of which those below 0 are none.

        `counted` says by metric the place of its period, and whether it is due. They share one loop, and so one
        compiled network.
        """
        number, at_once = self.evaluation_size, min(self.evaluation_size, _EVALUATED_AT_ONCE)
        each = -(-number // at_once)

        def batch(i):
            place, part = jnp.divmod(i, each)
            period, index = periods[place], part * at_once + jnp.arange(at_once)
            x, y = self._windows(state, data, self._spread(state, jnp.maximum(period, 0), index, number))
            there = ((index < number) & (period >= 0))[:, None]
            return x, {n: jnp.where(there & (place == mine) & due, y, -1) for n, (mine, due) in counted.items()}

        return Evaluation(how_many * each, batch, measure="bits")

    def _spread(self, state: TextState, period: jax.Array, index: jax.Array, number: int) -> jax.Array:
        """The windows at shares `index / number` of a period."""
        first, last = state.ends[period], state.ends[period + 1] - 1
        place = first + jnp.floor((last + 1 - first) * (index / number)).astype(jnp.int32)
        return jnp.minimum(place, last)

    def _windows(self, state: TextState, data: TextData, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Windows by their number in the order of the stream."""
        place = jnp.searchsorted(state.ends, number, side="right") - 1
        start = jnp.asarray(data.starts)[state.order[place]] + number - state.ends[place]
        return self._cut(data.text, start)

    def _cut(self, text: jax.Array | np.ndarray, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs and labels, int32 `[windows, context]`, of the windows that begin at `start`."""
        index = start[:, None] + jnp.arange(self.context + 1)
        window = jnp.asarray(text).at[index].get(mode="promise_in_bounds").astype(jnp.int32)
        return window[:, :-1], window[:, 1:]

    @property
    def _facts(self) -> "_Facts":
        return _facts(self.data_dir, self.period, self.context, self.held_out)


class _Facts(NamedTuple):
    """Files of the stream and those held out, the period as a number or word, and where periods begin."""

    files: tuple[Path, ...]
    held_out: tuple[Path, ...]
    period: int | str
    starts: tuple[int, ...]

    @property
    def periods(self) -> int:
        return len(self.starts) - 1


@functools.lru_cache(8)
def _facts(data_dir: str | None, period: int | str | None, context: int, held_out: str) -> _Facts:
    if data_dir is None:
        raise ValueError("data_dir: the text is missing; give a folder of .txt files, or one file, as --data_dir=DIR")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise ValueError(f"data_dir: there is no folder or file {path}")
    found = tuple(sorted(path.glob("*.txt"))) if path.is_dir() else (path,)
    files = tuple(file for file in found if not (held_out and fnmatch(file.name, held_out)))
    if not found:
        raise ValueError(f"data_dir: {path} holds no .txt file")
    if held_out and len(files) in (0, len(found)):
        what = "all files" if not files else "no file"
        raise ValueError(f"held_out: {held_out!r} is the name of {what} in {path}, as {found[0].name}")
    sizes = {file: _checked_size(file) for file in found}
    total, kept = sum(sizes[file] for file in files), tuple(file for file in found if file not in files)
    spare = sum(sizes[file] for file in kept) if kept else total
    if min(total, spare) <= context:
        which = "the text held out" if spare < total else "the text"
        raise ValueError(f"context: got {context}, {which} has {min(total, spare)} bytes")
    if total > MOST_STEPS:
        raise ValueError(f"data_dir: {path} has {total} bytes, allowed are {MOST_STEPS}")
    period = period or ("file" if path.is_dir() else min(_DEFAULT_PERIOD, total))
    if isinstance(period, int):
        if period > total:
            raise ValueError(f"period: got {period} bytes, the text has {total}")
        starts = [*range(0, total - period + 1, period), total]
    else:
        if path.is_file():
            raise ValueError(f"period: got '{period}', one file is cut into periods of a number of bytes")
        ends = itertools.accumulate(sizes[file] for file in files)
        ends = {_date(file, period): end for file, end in zip(files, ends, strict=True)}  # the last of every period
        if list(ends) != sorted(ends):
            raise ValueError(f"period: files of {path} do not sort by name as by {period}")
        starts = [0, *ends.values()]
    return _Facts(files, kept, period, _long_enough(starts, context + 1))


def _long_enough(starts: list[int], least: int) -> tuple[int, ...]:
    """Where periods begin, those shorter than `least` joined with the next, at the end with the one before."""
    kept = [0]
    for end in starts[1:-1]:
        if end - kept[-1] >= least and starts[-1] - end >= least:
            kept.append(end)
    return (*kept, starts[-1])


def _date(file: Path, period: str) -> tuple[int | str, int]:
    """What tells the file's period from others, in the order of time."""
    if period == "file":
        return file.name, 0
    date = _DATE.search(file.name)
    if date is None:
        raise ValueError(f"period: got '{period}', {file.name} has no date such as 2024-05 in its name")
    return int(date[1]), (int(date[2]) - 1) // DATES[period]


def _checked_size(file: Path) -> int:
    """Bytes of a file; ValueError where it is not text."""
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    with open(file, "rb") as opened:
        while True:
            part = opened.read(_READ_AT_ONCE)
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError:
                raise ValueError(f"{file}: not text in UTF-8, at bytes {size} to {size + len(part)}") from None
            if b"\0" in part:
                raise ValueError(f"{file}: not text, byte {size + part.index(0)} is 0")
            if not part:
                return size
            size += len(part)


def _joined(files: tuple[Path, ...]) -> np.ndarray:
    """The bytes of some files one after the other, uint8 `[bytes]`, memory-mapped."""
    if not files:
        return np.zeros(0, np.uint8)
    if len(files) == 1:
        return np.memmap(files[0], np.uint8, "r")
    folder = cache_folder("text", files)
    try:
        if not (folder / "text.npy").is_file():
            write_whole(folder, {"text": np.concatenate([np.fromfile(file, np.uint8) for file in files])}, files)
        return np.load(folder / "text.npy", mmap_mode="r")
    except (OSError, ValueError):  # no cache can be written
        return np.concatenate([np.fromfile(file, np.uint8) for file in files])
