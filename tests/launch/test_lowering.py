"""Every registered train step is a program for GPUs and TPUs: exported for both on this machine, without running it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.config.experiment import Experiment, resolve
from launch.config.methods import METHODS
from launch.engine.build import abstract_carry, job_program
from launch.engine.devices import AXIS, spread
from launch.engine.loop import chunk_of_steps
from tests.launch import tiny
from tests.marks import slow_unless

LANES, STEPS = 2, 3


def exported(of, method, parallel="lanes"):
    plan = resolve(Experiment(methods=method, seeds=(0,), **of))
    job = plan.jobs[0]
    carry, hyper, data = abstract_carry(plan, job)
    program = job_program(plan, job, AXIS if parallel == "batch" else None)
    many = functools.partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct((LANES, *leaf.shape), leaf.dtype))
    chunk = spread(functools.partial(chunk_of_steps, program, STEPS), 1, parallel)
    arguments = many(carry), many(hyper), jax.ShapeDtypeStruct((), jnp.int32), data
    return jax.export.export(jax.jit(chunk), platforms=["cuda", "tpu"])(*arguments)


def check(program):
    text = program.mlir_module()
    assert set(program.platforms) == {"cuda", "tpu"}
    assert not re.search(r"\bf64\b|xf64>", text), "float64"
    assert not re.search(r"callback|xla_python|py_client", text), "a call back to Python"
    # With several platforms the first argument of every function is the platform's number, which is no shape.
    assert not re.search(r"tensor<(\d+x)*\?", text), "a dynamic shape"
    assert len(program.mlir_module_serialized) > 1000


@pytest.mark.parametrize(("task", "method"), slow_unless(lambda *pair: pair in tiny.QUICK, tiny.PAIRS))
def test_a_chunk_is_a_program_for_gpus_and_tpus(task, method, images):
    of = tiny.small(task, images)
    check(exported(of | {"network": ""} if METHODS[method].network else of, method))


def test_so_is_a_chunk_of_one_device_of_several_that_share_batches(images):
    task = f"permuted_mnist(dataset=tiny,data_dir='{images}',batch=4,probe_size=8,evaluation_size=10)"
    program = exported({"task": task, "network": "mlp(widths=(6,))"}, "continual_backprop", "batch")
    check(program)
    assert "all_reduce" in program.mlir_module()


@pytest.mark.parametrize(
    ("what", "function"),
    [
        ("float64", lambda x: x.astype(jnp.float64)),
        ("call back", lambda x: jax.pure_callback(np.sin, x, x)),
    ],
)
def test_the_check_notices(what, function):
    with jax.enable_x64(True):
        try:
            program = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(jnp.ones(3, jnp.float32))
        except Exception as error:  # noqa: BLE001  that it cannot be exported at all is noticing it
            assert what == "call back", error
            return
    with pytest.raises(AssertionError, match=what):
        check(program)
