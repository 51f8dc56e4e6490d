"""The registry of methods. What a method's settings are stands in its own file, in `plastic_jax/methods`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launch.config.hyperparameters import Hyperparameter, Option
from launch.config.optimizers import OPTIMIZER, OPTIMIZERS
from launch.config.signatures import FromFactory, imported
from launch.config.syntax import Call
from launch.errors import InputError, unknown

if TYPE_CHECKING:  # JAX takes seconds to import, and lists are printed without it
    import jax
    import optax

    from plastic_jax.units.graph import UnitGraph


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """What a method may be given beside its settings.

    Attributes:
        units: the unit graph of the network; `None` where it is not known.
        init_params: key -> the parameters of a fresh network.
        key: the lane's key for the method.
        axis_name: the mapped axis over which devices share a batch, if they do.
    """

    units: "UnitGraph | None"
    init_params: "Callable[[jax.Array], Any]"
    key: "jax.Array"
    axis_name: str | None = None


LEAVE_OUT = Option("nothing", "pattern of parameters that replacement neither reads nor edits")
RESTART_ALL = Option(
    True, "begin running statistics and the optimizer's state anew as well as the weights", (True, False), bool
)
INPUT_DECAY = Hyperparameter(0.999, 0, 1, "weight of earlier inputs after every new one; 1: all count the same")
DROPOUT_RATE = Hyperparameter(0.1, 0, 0.95, "probability with which a unit is dropped")


@dataclasses.dataclass(frozen=True)
class MethodSpec(FromFactory):
    """A method as runs know it: an optax transformation, and what the learner does beside it.

    Attributes:
        name: as flags write it.
        summary: one line; where it is empty, the first of the factory's docstring.
        factory: `package.module:name` of the function that makes the transformation around an inner optimizer; empty
            for the optimizer alone.
        inner: the method whose transformation is the inner one; empty for the optimizer alone.
        fixed: arguments of the factory that are no settings here.
        defaults: settings whose default is another than that of the factory, or of the inner method.
        more: settings that the learner looks at.
        restart: whether every task begins with a new network.
        fresh_head: whether every task begins with a new output layer.
        dropout: whether the network is called with the number `dropout_rate`.
        network: the network it always has, or `None` for the run's.
        network_options: settings of the network that it changes.
        normalise_inputs: whether the learner normalises inputs by their running moments.
        chooses_inner: whether flags may say with `inner=NAME` which method is the inner one, with its settings beside.
        optimizer: the inner optimizer whose own settings it has; runs have that which they are asked for.
        source: where it comes from; where it is empty, the references of the factory's docstring.
        aliases: other names.
    """

    name: str
    summary: str = ""
    factory: str = ""
    inner: str = ""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more: Mapping[str, Hyperparameter | Option] = dataclasses.field(default_factory=dict)
    restart: bool = False
    fresh_head: bool = False
    dropout: bool = False
    network: str | None = None
    network_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalise_inputs: bool = False
    chooses_inner: bool = False
    optimizer: str = "sgd"
    source: str = ""
    aliases: tuple[str, ...] = ()

    @functools.cached_property
    def settings(self) -> dict[str, Hyperparameter | Option]:
        """All settings by name, the method's own first."""
        own = {} if self.signature is None else self.signature.settings
        inner = METHODS[self.inner].settings if self.inner else OPTIMIZER
        units = {"leave_out": LEAVE_OUT} if self.needs_units else {}
        units |= {"input_decay": INPUT_DECAY} if self.normalise_inputs else {}
        units |= {"inner": Option(self.inner or BACKPROP, _INNER, inner_methods())} if self.chooses_inner else {}
        found = {name: setting for name, setting in own.items() if name not in self.fixed}
        inner = {**inner, **OPTIMIZERS[self.optimizer].settings}
        found |= {**units, **self.more} | {name: setting for name, setting in inner.items() if name not in found}
        changed = {name: dataclasses.replace(found[name], default=value) for name, value in self.defaults.items()}
        return found | changed

    def around(self, inner: Any) -> "MethodSpec":
        """The method around the one called `inner`, where flags may choose it; itself for any other name."""
        chosen = self.chooses_inner and inner in inner_methods()
        return dataclasses.replace(self, inner=inner) if chosen else self

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        """The numbers, which may differ from lane to lane, by name."""
        return {name: each for name, each in self.settings.items() if isinstance(each, Hyperparameter)}

    @property
    def options(self) -> dict[str, Option]:
        """What decides the program, by name."""
        return {name: each for name, each in self.settings.items() if isinstance(each, Option)}

    @property
    def needs_units(self) -> bool:
        """Whether it, or its inner method, cannot do without the units of the network."""
        own = self.signature is not None and "units" in self.signature.required
        return own or bool(self.inner and METHODS[self.inner].needs_units)

    @property
    def needs(self) -> frozenset[str]:
        """The extra arguments that its transformation, an inner method or the inner optimizer cannot do without."""
        own = () if self.signature is None else self.signature.needs
        inner = METHODS[self.inner].needs if self.inner else ()
        return frozenset((*own, *inner, *OPTIMIZERS[self.optimizer].needs))

    @property
    def needs_feature_gradients(self) -> bool:
        """Whether any part of it is given the gradients in the features."""
        return "feature_gradients" in self.needs

    @property
    def task_aware(self) -> bool:
        """Whether it sees task boundaries."""
        return self.restart or self.fresh_head or "boundary" in self.needs

    @property
    def references(self) -> str:
        """Where it comes from."""
        return self.source or ("" if self.signature is None else self.signature.source)

    def build(
        self, hyper: Mapping[str, Any], options: Mapping[str, Any], context: BuildContext
    ) -> "optax.GradientTransformationExtraArgs":
        """The transformation; called inside the compiled step, where the numbers in `hyper` are traced."""
        import optax

        optimizer = OPTIMIZERS[options["optimizer"]]
        inner = (
            METHODS[self.inner].build(hyper, options, context) if self.inner else optimizer.build({**options, **hyper})
        )
        if self.signature is None:
            return inner
        given = {
            "inner": inner,
            "units": context.units,
            "init": context.init_params,
            "key": context.key,
            "step_size": hyper["step_size"],
            "axis_name": context.axis_name,
        }
        values = {**options, **hyper, **given, **self.fixed}
        arguments = {name: values[name] for name in self.signature.parameters if name in values}
        return optax.with_extra_args_support(imported("--methods", self.factory)(**arguments))


def _method(name: str, module: str = "", **fields: Any) -> MethodSpec:
    """The method that the function `name` of `plastic_jax.methods.<module>` makes; by default in a file of its name."""
    return MethodSpec(name, factory=f"plastic_jax.methods.{module or name}:{name}", **fields)


def _architecture(name: str, summary: str, options: Mapping[str, Any], **fields: Any) -> MethodSpec:
    """L2 on the run's network with other options; without decay where none is asked for."""
    return MethodSpec(name, summary, inner="l2", defaults={"weight_decay": 0.0}, network_options=options, **fields)


NETWORK_OPTIONS = ("activation", "norm")
"""Settings of networks that every method may change for itself."""
NORMALISE_INPUTS = Option(False, "normalise inputs by their running mean and variance", (True, False), bool)
"""Of every method, under the name `normalise_inputs`."""
_DECAY = "plastic_jax.methods.weight_decay:weight_decay"
_DOHARE = "Dohare et al., Nature 632, 2024"

BACKPROP = "backprop"
_INNER = "the method inside, whose settings stand beside: inner=continual_backprop,replacement_rate=1e-4"
_SPARSE = "plastic_jax.methods.sparse:sparse"
_PUBLISHED_EXCHANGE = {"exchange_rate": 0.3, "connection_maturity": 0}  # both papers, without the fall of the rate

METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec("backprop", "plain gradient descent", source=_DOHARE, aliases=("standard",)),
        MethodSpec(
            "tuned_adam",
            "Adam whose two moments decay at the same rate",
            defaults={"optimizer": "adam", "step_size": 1e-3, "b1": 0.99, "b2": 0.99},
            source='Dohare et al., 2023, "Overcoming policy collapse in deep reinforcement learning"',
        ),
        MethodSpec(
            "l2",
            "L2 regularisation, coupled: weight_decay * w joins the gradient",
            _DECAY,
            fixed={"coupled": True, "step_size": None},
            source=_DOHARE,
        ),
        MethodSpec(
            "decoupled_weight_decay",
            "weights shrink by step_size * weight_decay beside the gradient step (AdamW)",
            _DECAY,
            fixed={"coupled": False},
            source="Loshchilov and Hutter, ICLR 2019",
        ),
        _method("l2_init"),
        _method("l2_init_after_first_update", "l2_init"),
        _method("spectral"),
        _method("parseval"),
        _method("weight_clipping"),
        _method("normalize_and_project"),
        _method("fire"),
        _method("fire_at_boundary", "fire"),
        _method("shrink_and_perturb"),
        _method("published_shrink_and_perturb", "shrink_and_perturb"),
        _method("shrink_and_perturb_at_boundary", "shrink_and_perturb"),
        _method("continual_backprop", inner="l2", defaults={"weight_decay": 0.0}),
        _method("swr"),
        _method("sparse", chooses_inner=True),
        MethodSpec(
            "set",
            "SET: a sparse network; the smallest connections are exchanged for random ones",
            _SPARSE,
            fixed={"drop": "magnitude", "grow": "random", "utility_decay": 0.0},
            defaults={**_PUBLISHED_EXCHANGE, "new_weight": "sample"},
            chooses_inner=True,
            source="Mocanu et al., Nature Communications 9, 2018",
        ),
        MethodSpec(
            "rigl",
            "RigL: a sparse network; the smallest connections are exchanged for those of the largest gradients",
            _SPARSE,
            fixed={"drop": "magnitude", "grow": "gradient", "utility_decay": 0.0},
            defaults=_PUBLISHED_EXCHANGE,
            chooses_inner=True,
            source="Evci et al., ICML 2020",
        ),
        _method("hare_and_tortoise"),
        _method("dash"),
        _method("upgd"),
        _method("feature_upgd", "upgd"),
        MethodSpec(
            "ada_upgd",
            "AdaUPGD: UPGD around Adam, its gated part doubled",
            "plastic_jax.methods.upgd:upgd",
            fixed={"doubled": True},
            defaults={"optimizer": "adam", "step_size": 1e-3},
        ),
        _method("redo", inner="l2", defaults={"weight_decay": 0.0}),
        _method("regrama", inner="l2", defaults={"weight_decay": 0.0}),
        _method("snr", inner="l2", defaults={"weight_decay": 0.0}),
        _method("cpr", inner="l2", defaults={"weight_decay": 0.0}),
        MethodSpec(
            "dropout",
            "hidden units are dropped at random in training",
            more={"dropout_rate": DROPOUT_RATE},
            dropout=True,
            source="Srivastava et al., JMLR 2014",
        ),
        MethodSpec(
            "head_reset", "L2, and a new output layer at every task change", inner="l2", fresh_head=True, source=_DOHARE
        ),
        MethodSpec("linear", "baseline: no hidden layer", network="linear", source=_DOHARE),
        _architecture(
            "layer_norm",
            "layer normalisation before every activation, with L2",
            {"norm": "layer_norm"},
            source="Ba et al., 2016; Lyle et al., ICML 2023",
        ),
        _architecture(
            "rms_norm",
            "root-mean-square normalisation before every activation, with L2",
            {"norm": "rms_norm"},
            source="Zhang and Sennrich, NeurIPS 2019; Lyle et al., NeurIPS 2024",
        ),
        _architecture(
            "crelu",
            "concatenated ReLU: every unit is read as relu(z) and relu(-z)",
            {"activation": "crelu"},
            source="Shang et al., ICML 2016; Abbas et al., CoLLAs 2023",
        ),
        _architecture(
            "deep_fourier_features",
            "sine and cosine of half as many units in every layer",
            {"activation": "deep_fourier"},
            source="Lewandowski et al., ICLR 2025",
        ),
        _architecture(
            "smooth_leaky_relu",
            "leaky ReLU without a kink",
            {"activation": "smooth_leaky_relu"},
            source="arXiv 2509.22562, ICLR 2026",
        ),
        _architecture(
            "rational",
            "activations that are learned: a quotient of polynomials for every layer",
            {"activation": "rational"},
            source="Molina et al., ICLR 2020; Delfosse et al., ICLR 2024",
        ),
        MethodSpec(
            "optimizer_reset",
            "a new state of the optimizer, and the weights that it had, at every task change",
            "plastic_jax.methods.boundary_resets:reset_optimizer_at_boundary",
            inner="l2",
            defaults={"weight_decay": 0.0},
        ),
        MethodSpec(
            "online_normalization",
            "control: inputs are normalised by their running mean and variance",
            inner="l2",
            defaults={"weight_decay": 0.0},
            normalise_inputs=True,
            source="whatever a change of the inputs' statistics alone costs is not loss of plasticity",
        ),
        MethodSpec(
            "fresh_network",
            "control: a new network and optimizer at every task change",
            inner="l2",
            defaults={"weight_decay": 0.0},
            more={"restart_all": RESTART_ALL},
            restart=True,
            source="the gap to it is the loss of plasticity",
        ),
    )
}


@functools.cache
def inner_methods() -> tuple[str, ...]:
    """Names of the methods that may be inside of another: those that are nothing but a transformation."""
    own = {field.name: field.default for field in dataclasses.fields(MethodSpec)}
    beside = ("restart", "fresh_head", "dropout", "network", "normalise_inputs", "chooses_inner")
    return tuple(
        name
        for name, spec in METHODS.items()
        if not (spec.more or spec.network_options) and all(getattr(spec, field) == own[field] for field in beside)
    )


def find_method(call: Call) -> MethodSpec:
    """The method of that name, or of the function (or `MethodSpec`) at `package.module:name`.

    Raises:
        InputError: there is none, or it is neither.
    """
    if ":" in call.name:
        found = imported("--methods", call.name)
        if isinstance(found, MethodSpec):
            return found
        if not callable(found) or not hasattr(found, "__qualname__"):
            raise InputError(
                f"--methods: {call.name} is a {type(found).__name__}, not a function (inner, ...) -> optax "
                "transformation or a launch.config.methods.MethodSpec"
            )
        return MethodSpec(found.__name__, factory=f"{found.__module__}:{found.__qualname__}")
    names = {alias: spec for spec in METHODS.values() for alias in (spec.name, *spec.aliases)}
    if call.name not in names:
        raise unknown("--methods", call.name, names)
    return names[call.name].around(call.settings.get("inner"))
