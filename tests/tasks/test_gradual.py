"""Streams whose tasks come slowly: every example is of one of two tasks, in the shares asked for, for every task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config.registry import find_task
from launch.config.syntax import parse_call
from tasks.base import gradual
from tasks.continual_imagenet import ContinualImageNet
from tests.launch import tiny
from tests.marks import slow_unless

KEY = jax.random.key(5)
STREAMS = [name for name in tiny.SMALL if name != "ant"]
QUICK_STREAMS = ("slowly_changing_regression", "label_permuted_mnist", "incremental_cifar100")
"""Those of `make test`: without data, with them, and with tasks of unequal length whose classes count."""


def batches_of(steps, *tasks):
    """Of every task the batches of the first steps, host arrays; on the same data, in one program."""
    data, clocks = tasks[0].load(), jnp.arange(steps, dtype=jnp.int32)

    def show(data):
        return [jax.lax.scan(lambda s, c, t=t: t.next(s, c, data), t.init(KEY, data), clocks)[1] for t in tasks]

    return jax.tree.map(np.asarray, jax.jit(show)(data))


def rows(batches, step):
    """What is learned from at a step, an example a row: input, target and, where not all count, the classes."""
    parts = [np.reshape(each[step], (len(each[step]), -1)) for each in (batches.x, batches.y)]
    if batches.class_mask is not None:
        mask = batches.class_mask[step]
        parts.append(np.broadcast_to(mask, (len(parts[0]), mask.shape[-1])))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("name", slow_unless(lambda name: name in QUICK_STREAMS, STREAMS))
def test_every_example_is_of_the_new_task_or_of_the_same_step_of_the_task_before(name, images):
    """Mixed and plain batches of the task of that name, an example at a time, and how many are of the task before."""
    task = find_task(parse_call("--task", tiny.small(name, images)["task"]))[1].fitted
    if name == "continual_imagenet":
        task = dataclasses.replace(task, head="multi")  # the classes that count are others in every task
    assert gradual(dataclasses.replace(task, abruptness=1)) == dataclasses.replace(task, abruptness=1)
    starts = task.schedule.starts or tuple(range(0, 4 * task.schedule.change_every + 1, task.schedule.change_every))
    starts = starts[: 1 + next(n for n, start in enumerate(starts) if n >= 2 or start == starts[-1])]
    slow = gradual(dataclasses.replace(task, abruptness=0.25))
    plain, mixed = batches_of(starts[-1], dataclasses.replace(task, abruptness=1.0), slow)
    assert slow.schedule == task.schedule and slow.spec == task.spec
    for field in ("boundary", "reset_head", "step_scale"):
        np.testing.assert_array_equal(getattr(mixed, field), getattr(plain, field))
    for step in range(starts[1]):
        np.testing.assert_array_equal(rows(mixed, step), rows(plain, step))
    old, likely, spread = 0.0, 0.0, 0.0
    for step in range(starts[1], starts[-1]):
        number = sum(step >= start for start in starts) - 1
        start, length, before = starts[number], starts[number + 1] - starts[number], starts[number - 1]
        earlier = before + (step - start) % (start - before)
        share = max(0.0, 1 - (step - start + 0.5) / (0.75 * length))
        made, new, gone = rows(mixed, step), rows(plain, step), rows(plain, earlier)
        of_new, of_old = (np.isclose(made, each, rtol=1e-5, atol=1e-5).all(1) for each in (new, gone))
        assert (of_new | of_old).all()
        assert share > 0 or of_new.all()
        told = ~np.isclose(new, gone, rtol=1e-5, atol=1e-5).all(1)  # examples that say which task they are of
        old, likely, spread = (
            old + of_old[told].sum(),
            likely + share * told.sum(),
            spread + share * (1 - share) * told.sum(),
        )
    assert spread > 0 and abs(old - likely) < 4.5 * np.sqrt(spread) + 1e-6


@pytest.mark.parametrize("value", [-0.1, 1.1, "no", True, float("nan")])
def test_an_abruptness_that_cannot_be_is_refused(value, images):
    with pytest.raises(ValueError, match=r"abruptness: got .*, allowed are numbers from 0 to 1"):
        ContinualImageNet(dataset="tiny", data_dir=str(images), abruptness=value)
    with pytest.raises(ValueError, match="abruptness"):
        gradual(dataclasses.replace(tiny.Drift(), abruptness=value))
