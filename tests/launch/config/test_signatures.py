"""What is read from the source of a method is what Python sees once it is imported."""

import functools
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import jax
import pytest

from launch.config.hyperparameters import Hyperparameter, Option
from launch.config.methods import METHODS, BuildContext
from launch.config.optimizers import OPTIMIZER, OPTIMIZERS
from launch.config.registry import LEARNERS, TASKS
from launch.config.signatures import GIVEN, imported, read_fields, read_signature
from launch.errors import InputError
from plastic_jax import signature
from plastic_jax.signature import Range

ROOT = Path(__file__).parents[3]
FACTORIES = sorted(
    {spec.factory for spec in METHODS.values() if spec.factory}
    | {spec.factory for spec in OPTIMIZERS.values() if spec.settings}
)


def words(kind):
    return tuple(word for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part))


@pytest.mark.parametrize("code", FACTORIES)
def test_a_signature_is_read_as_python_has_it(code):
    read, factory = read_signature(code), imported("", code)
    parameters = inspect.signature(factory).parameters
    assert read.parameters == tuple(parameters)
    assert read.needs == factory.needs
    assert read.summary == inspect.getdoc(factory).partition("\n")[0].removesuffix(".")
    for name, parameter in parameters.items():
        hint = parameter.annotation
        kind, ranges = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        setting = read.settings.get(name)
        if setting is None:
            assert name in GIVEN or (not ranges and not words(kind) and kind not in (bool, str, float)), name
            continue
        assert setting.default == parameter.default
        assert setting.meaning
        if isinstance(setting, Hyperparameter):
            assert Range(setting.low, setting.high, setting.below) == ranges[0]
            assert setting.integer == (int in get_args(kind)) and jax.Array in get_args(kind)
        else:
            assert setting.allowed == (words(kind) or ((True, False) if kind is bool else ()))
            assert setting.optional == (type(None) in get_args(kind))
            assert not ranges or (setting.low, setting.high) == ranges[0][:2]


def test_launcher_and_library_agree_on_what_a_method_is_given():
    assert GIVEN == signature.GIVEN


def test_the_launchers_defaults_are_those_of_the_library():
    """Where a method has another, the registry says so."""
    for spec in METHODS.values():
        own = {} if spec.signature is None else spec.signature.settings
        for name, setting in spec.settings.items():
            if name in own and name not in spec.defaults:
                assert setting.default == own[name].default, (spec.name, name)


@pytest.mark.parametrize("code", sorted({*(spec.code for spec in TASKS.values()), *LEARNERS.values()}))
def test_fields_are_read_as_python_has_them(code):
    made, read = imported("", code)(), read_fields(code)
    assert {name: eval(text) for name, text in read.defaults.items()} == vars(made)
    assert read.docstring == inspect.getdoc(type(made))


@pytest.mark.parametrize("arguments", ["--list", "--explain=continual_backprop", "--explain=slippery_ant"])
def test_lists_and_explanations_import_nothing_heavy(arguments):
    code = (
        "import sys; from absl import flags; from launch import train; train.define_flags();"
        f"train.main(flags.FLAGS(['train', '{arguments}'])[1:]);"
        "print([name for name in ('jax', 'flax', 'optax', 'brax', 'orbax', 'matplotlib') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


def mild(inner, rate: float = 0.5, *, kind: Literal["a", "b"] = "a", anything=None):
    """Does little.

    Args:
        rate: how little,
            in words.
    """


@functools.lru_cache(3)
def cached(inner, *, rate: float = 1.0):
    """Has a decorator that says nothing of needs."""


MOST = 3


def bounded(
    inner,
    *,
    rate: Annotated[float, Range(0, 2 * MOST)] = MOST / 2,
    number: Annotated[int | None, Range(0, MOST)] = None,
    inside: object = jax.numpy.tanh,
):
    """Says its bounds by a constant."""


def demanding(inner, rate):
    """Has no default."""


def computed(inner, *, rate: float = max(1, 2)):
    """Has a default that has to be run."""


def test_ones_own_method_needs_no_ranges():
    read = read_signature(f"{__name__}:mild")
    assert read.settings == {
        "rate": Hyperparameter(0.5, -float("inf"), float("inf"), "how little, in words"),
        "kind": Option("a", "", ("a", "b")),
    }
    assert read.settings["rate"].checked("", -3) == -3


def test_ranges_may_be_constants_of_the_module_and_hold_for_options_too():
    read = read_signature(f"{__name__}:bounded").settings
    assert read == {"rate": Hyperparameter(1.5, 0, 6, ""), "number": Option(None, "", (), int, 0, 3, True)}
    assert read["number"].checked("", 3) == 3
    with pytest.raises(InputError, match="'4' is not a whole number from 0 to 3, or None"):
        read["number"].checked("where", 4)


def test_other_decorators_say_nothing():
    assert read_signature(f"{__name__}:cached").needs == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("computed", r"'max\(1, 2\)' is not a literal"),
        ("demanding", "rate has no default"),
        ("FACTORIES", "neither a function nor a class"),
        ("none", "neither"),
    ],
)
def test_what_cannot_be_read_is_said(name, words):
    with pytest.raises(InputError, match=words):
        read_signature(f"{__name__}:{name}")


def test_a_method_is_built_with_what_it_is_given(monkeypatch):
    """`decoupled_weight_decay` takes the step size of the inner optimizer."""
    hyper, options = {"step_size": 0.5, "weight_decay": 0.25}, {"optimizer": "sgd"}
    tx = METHODS["decoupled_weight_decay"].build(
        hyper, options, BuildContext(None, lambda key: None, jax.random.key(0))
    )
    updates, _ = tx.update({"w": jax.numpy.ones(1)}, tx.init({"w": jax.numpy.ones(1)}), {"w": jax.numpy.full(1, 4.0)})
    assert updates["w"].tolist() == [-0.5 - 0.5 * 0.25 * 4.0]
    assert set(OPTIMIZER) <= set(METHODS["decoupled_weight_decay"].settings)
