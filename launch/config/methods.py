"""The registry of methods: how each is built, and every number and choice it has."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from plastic_jax.methods.continual_backprop import continual_backprop
from plastic_jax.methods.redo import redo
from plastic_jax.methods.shrink_and_perturb import (
    published_shrink_and_perturb,
    shrink_and_perturb,
    shrink_and_perturb_at_boundary,
)
from plastic_jax.methods.weight_decay import weight_decay
from plastic_jax.optimizers.adam import adam
from plastic_jax.replacement.utility import UTILITIES
from plastic_jax.units.graph import UnitGraph


@dataclasses.dataclass(frozen=True)
class Number:
    """A hyperparameter that may differ from lane to lane: its default, the values allowed, and what it means."""

    default: float
    low: float
    high: float
    meaning: str
    integer: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting that shapes the program: one of `allowed`, or any value of `kind` where nothing is listed.

    `low` is the least whole number allowed; it counts for the kind `int` only.
    """

    default: Any
    meaning: str
    allowed: tuple[Any, ...] = ()
    kind: type = str
    low: int = 1

    @property
    def whole_numbers(self) -> str:
        """The whole numbers allowed, in words."""
        return "a positive whole number" if self.low == 1 else f"a whole number from {self.low} on"


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """What a method may need beside its numbers: the unit graph, a fresh network, the lane's method key.

    `axis_name` is the mapped axis over which devices share a batch, if they do.
    """

    units: UnitGraph | None
    init_params: Callable[[jax.Array], Any]
    key: jax.Array
    axis_name: str | None = None


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """A method: `build(hyper, static, context)` gives its optax transformation.

    Attributes:
        name: as flags write it.
        summary: one line.
        build: called inside the compiled step; numbers in `hyper` are traced, values in `static` are not.
        numbers: hyperparameters by name.
        static: choices by name.
        needs_units: whether it replaces hidden units.
        task_aware: whether it is told of task changes.
        restart: whether every task begins with a new network.
        fresh_head: whether every task begins with a new output layer.
        dropout: whether the network is called with the number `dropout_rate`.
        network: the network it always has, or `None` for the run's.
        source: where it comes from.
        aliases: other names.
    """

    name: str
    summary: str
    build: Callable[[Mapping[str, Any], Mapping[str, Any], BuildContext], optax.GradientTransformation]
    numbers: Mapping[str, Number]
    static: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    needs_units: bool = False
    task_aware: bool = False
    restart: bool = False
    fresh_head: bool = False
    dropout: bool = False
    network: str | None = None
    source: str = ""
    aliases: tuple[str, ...] = ()


STEP_SIZE = Number(0.01, 0.0, 100.0, "step size of the inner optimizer")
OPTIMIZER_NUMBERS = {
    "step_size": STEP_SIZE,
    "momentum": Number(0.9, 0.0, 0.999999, "velocity decay; used with optimizer=momentum"),
    "b1": Number(0.9, 0.0, 0.999999, "decay of Adam's first moment; used with optimizer=adam"),
    "b2": Number(0.999, 0.0, 0.99999999, "decay of Adam's second moment; used with optimizer=adam"),
}
OPTIMIZER = {"optimizer": Choice("sgd", "the inner optimizer", ("sgd", "momentum", "adam"))}
PPO_NUMBERS = {
    "discount": Number(0.99, 0.0, 1.0, "what a reward is worth a step later, as a share of what it is now"),
    "gae_lambda": Number(0.95, 0.0, 1.0, "of the advantages: 0 is one step ahead, 1 the whole return"),
    "clip_range": Number(0.2, 0.0, 100.0, "how far from 1 the ratio of the policies counts"),
    "value_coefficient": Number(1.0, 0.0, 1e6, "weight of the value function's squared error in the loss"),
    "entropy_coefficient": Number(0.0, 0.0, 1e6, "weight of the policy's entropy (nats) in the loss"),
}
"""Numbers of PPO, which every method has on environments that are acted on."""
WEIGHT_DECAY = Number(0.0, 0.0, 10.0, "lambda of L2: the gradient gains lambda * w, biases included")

INITIALIZER = Choice(
    "kaiming_uniform",
    "initializer of a fresh unit's weights",
    ("kaiming_uniform", "kaiming_normal", "lecun_uniform", "xavier_uniform", "torch_default"),
)
HISTORY = Choice(0, "replacements kept for launch.report, 20 bytes each; 0 keeps none", kind=int, low=0)
RESTART_ALL = Choice(
    True, "begin running statistics and the optimizer's state anew as well as the weights", (True, False), bool
)
RESET_STATE = Choice(True, "reset the inner optimizer's state of a replaced unit", (True, False), bool)


def inner_optimizer(hyper: Mapping[str, Any], static: Mapping[str, Any]) -> optax.GradientTransformation:
    """The optimizer that learns, by the choice `optimizer`; Adam counts steps per weight, as unit resets need."""
    if static["optimizer"] == "momentum":
        return optax.sgd(hyper["step_size"], hyper["momentum"])
    if static["optimizer"] == "adam":
        return adam(hyper["step_size"], hyper["b1"], hyper["b2"])
    return optax.sgd(hyper["step_size"])


def _backprop(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    return inner_optimizer(hyper, static)


def _l2(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    return weight_decay(inner_optimizer(hyper, static), hyper["weight_decay"])


def _decoupled(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    inner = inner_optimizer(hyper, static)
    return weight_decay(inner, hyper["weight_decay"], coupled=False, step_size=hyper["step_size"])


def _shrink_and_perturb(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    return shrink_and_perturb(
        inner_optimizer(hyper, static),
        shrink=hyper["shrink"],
        noise=hyper["noise"],
        key=context.key,
        every=static["every"],
    )


def _published_shrink_and_perturb(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    return published_shrink_and_perturb(
        inner_optimizer(hyper, static),
        weight_decay=hyper["weight_decay"],
        noise_std=hyper["noise_std"],
        key=context.key,
        noise_every=static["noise_every"],
    )


def _at_boundary(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    return shrink_and_perturb_at_boundary(
        inner_optimizer(hyper, static),
        shrink=hyper["shrink"],
        perturb=hyper["perturb"],
        init=context.init_params,
        key=context.key,
    )


def _continual_backprop(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    assert context.units is not None, "resolved before: the method needs the unit graph"
    return continual_backprop(
        weight_decay(inner_optimizer(hyper, static), hyper["weight_decay"]),
        context.units,
        replacement_rate=hyper["replacement_rate"],
        maturity_threshold=hyper["maturity_threshold"],
        decay_rate=hyper["decay_rate"],
        utility=static["utility"],
        initializer=static["initializer"],
        key=context.key,
        max_replacements=static["max_replacements"],
        utility_every=static["utility_every"],
        count=static["count"],
        count_units=static["count_units"],
        reset_state=static["reset_state"],
        transfer_bias=static["transfer_bias"],
        log_size=static["history"],
        axis_name=context.axis_name,
    )


def _redo(hyper: Mapping[str, Any], static: Mapping[str, Any], context: BuildContext) -> Any:
    assert context.units is not None, "resolved before: the method needs the unit graph"
    return redo(
        weight_decay(inner_optimizer(hyper, static), hyper["weight_decay"]),
        context.units,
        threshold=hyper["threshold"],
        period=hyper["period"],
        decay_rate=hyper["decay_rate"],
        initializer=static["initializer"],
        key=context.key,
        max_replacements=static["max_replacements"] or None,
        reset_state=static["reset_state"],
        log_size=static["history"],
        axis_name=context.axis_name,
    )


_DOHARE = "Dohare et al., Nature 632, 2024"
_SHRINK = Number(0.0, 0.0, 1.0, "share of every weight that is taken off")

METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            "backprop",
            "plain gradient descent",
            _backprop,
            OPTIMIZER_NUMBERS,
            OPTIMIZER,
            source=_DOHARE,
            aliases=("standard",),
        ),
        MethodSpec(
            "tuned_adam",
            "Adam whose two moments decay at the same rate",
            _backprop,
            OPTIMIZER_NUMBERS
            | {
                "step_size": dataclasses.replace(STEP_SIZE, default=1e-3),
                "b1": dataclasses.replace(OPTIMIZER_NUMBERS["b1"], default=0.99),
                "b2": dataclasses.replace(OPTIMIZER_NUMBERS["b2"], default=0.99),
            },
            {"optimizer": dataclasses.replace(OPTIMIZER["optimizer"], default="adam")},
            source='Dohare et al., 2023, "Overcoming policy collapse in deep reinforcement learning"',
        ),
        MethodSpec(
            "l2",
            "L2 regularisation, coupled: lambda * w joins the gradient",
            _l2,
            OPTIMIZER_NUMBERS | {"weight_decay": dataclasses.replace(WEIGHT_DECAY, default=1e-4)},
            OPTIMIZER,
            source=_DOHARE,
        ),
        MethodSpec(
            "dropout",
            "hidden units are dropped at random in training",
            _backprop,
            OPTIMIZER_NUMBERS | {"dropout_rate": Number(0.1, 0.0, 0.95, "probability with which a unit is dropped")},
            OPTIMIZER,
            dropout=True,
            source="Srivastava et al., JMLR 2014",
        ),
        MethodSpec(
            "head_reset",
            "L2, and a new output layer at every task change",
            _l2,
            OPTIMIZER_NUMBERS | {"weight_decay": dataclasses.replace(WEIGHT_DECAY, default=1e-4)},
            OPTIMIZER,
            task_aware=True,
            fresh_head=True,
            source=_DOHARE,
        ),
        MethodSpec(
            "decoupled_weight_decay",
            "weights shrink by step_size * lambda beside the gradient step (AdamW)",
            _decoupled,
            OPTIMIZER_NUMBERS
            | {"weight_decay": Number(1e-4, 0.0, 10.0, "lambda: every weight loses step_size * lambda of itself")},
            OPTIMIZER,
            source="Loshchilov and Hutter, ICLR 2019",
        ),
        MethodSpec(
            "shrink_and_perturb",
            "every few steps, weights shrink and gain noise in units of each layer's initial spread",
            _shrink_and_perturb,
            OPTIMIZER_NUMBERS
            | {
                "shrink": dataclasses.replace(_SHRINK, default=1e-6),
                "noise": Number(1e-4, 0.0, 10.0, "noise per application, in units of the layer's initial spread"),
            },
            OPTIMIZER | {"every": Choice(1, "steps between two applications", kind=int)},
            source="Ash and Adams, NeurIPS 2020, in normalised units",
        ),
        MethodSpec(
            "published_shrink_and_perturb",
            "L2, and after every step the same noise on every weight",
            _published_shrink_and_perturb,
            OPTIMIZER_NUMBERS
            | {
                "weight_decay": dataclasses.replace(WEIGHT_DECAY, default=1e-4),
                "noise_std": Number(
                    1e-5, 0.0, 10.0, "standard deviation of the noise per step, whatever the step size"
                ),
            },
            OPTIMIZER | {"noise_every": Choice(1, "draw the noise of k steps at once, at every k-th step", kind=int)},
            source=_DOHARE,
        ),
        MethodSpec(
            "shrink_and_perturb_at_boundary",
            "at each task change, weights shrink and gain a part of a fresh network",
            _at_boundary,
            OPTIMIZER_NUMBERS
            | {
                "shrink": Number(0.4, 0.0, 1.0, "factor on the old weights"),
                "perturb": Number(0.1, 0.0, 1.0, "factor on the fresh network's weights"),
            },
            OPTIMIZER,
            task_aware=True,
            source="Ash and Adams, NeurIPS 2020",
        ),
        MethodSpec(
            "continual_backprop",
            "at every step a tiny fraction of the least useful, old enough units starts afresh",
            _continual_backprop,
            OPTIMIZER_NUMBERS
            | {
                "replacement_rate": Number(
                    1e-4, 0.0, 1.0, "units replaced per update, as a share of the eligible ones"
                ),
                "maturity_threshold": Number(100, 0, 1e9, "updates a new unit is protected", integer=True),
                "decay_rate": Number(0.99, 0.0, 0.999999, "decay of the running averages of utility and activation"),
                "weight_decay": WEIGHT_DECAY,
            },
            OPTIMIZER
            | {
                "utility": Choice("adaptable_contribution", "measure of a unit's usefulness", tuple(UTILITIES)),
                "count": Choice("accumulate", "what becomes of owed fractions of a unit", ("accumulate", "bernoulli")),
                "count_units": Choice(
                    "eligible", "what the rate is a share of, once a unit is eligible", ("eligible", "all")
                ),
                "initializer": INITIALIZER,
                "leave_out": Choice("nothing", "pattern of parameters that replacement neither reads nor edits"),
                "max_replacements": Choice(1, "bound on units replaced per layer and step", kind=int),
                "utility_every": Choice(1, "measure utility at every k-th step only", kind=int),
                "reset_state": RESET_STATE,
                "transfer_bias": Choice(False, "the next bias takes over the mean contribution", (True, False), bool),
                "history": HISTORY,
            },
            needs_units=True,
            source=_DOHARE,
        ),
        MethodSpec(
            "redo",
            "at regular intervals, units much less active than the mean of their layer start afresh",
            _redo,
            OPTIMIZER_NUMBERS
            | {
                "threshold": Number(
                    0.025, 0.0, 1e9, "share of the layer's mean activity up to which a unit is dormant"
                ),
                "period": Number(1000, 1, 1e9, "steps between two resets", integer=True),
                "decay_rate": Number(
                    0.99, 0.0, 0.999999, "decay of the running average of activity; 0: this step's batch alone"
                ),
                "weight_decay": WEIGHT_DECAY,
            },
            OPTIMIZER
            | {
                "initializer": INITIALIZER,
                "max_replacements": Choice(
                    0, "bound on units replaced per layer and reset; 0: no bound", kind=int, low=0
                ),
                "reset_state": RESET_STATE,
                "history": HISTORY,
            },
            needs_units=True,
            source="Sokar et al., ICML 2023",
        ),
        MethodSpec(
            "linear",
            "baseline: no hidden layer",
            _backprop,
            OPTIMIZER_NUMBERS,
            OPTIMIZER,
            network="linear",
            source=_DOHARE,
        ),
        MethodSpec(
            "fresh_network",
            "control: a new network and optimizer at every task change",
            _l2,
            OPTIMIZER_NUMBERS | {"weight_decay": WEIGHT_DECAY},
            OPTIMIZER | {"restart_all": RESTART_ALL},
            task_aware=True,
            restart=True,
            source="the gap to it is the loss of plasticity",
        ),
    )
}
