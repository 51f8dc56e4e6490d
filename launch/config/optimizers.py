"""The registry of inner optimizers. What their settings are stands in their own files, in `plastic_jax/optimizers`."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch.config.hyperparameters import Hyperparameter, Option
from launch.config.signatures import FromFactory, imported, read_signature

if TYPE_CHECKING:  # JAX takes seconds to import, and lists are printed without it
    import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSpec(FromFactory):
    """An optimizer as runs know it.

    Attributes:
        name: as flags write it.
        factory: `package.module:name` of the function that makes the transformation; empty for those of optax alone.
        summary: one line; where it is empty, the first of the factory's docstring.
        defaults: settings whose default is another with it than that of `OPTIMIZER`, or of the factory.
        fixed: arguments of the factory that are no settings here.
        streams: whether it is for streams of examples alone, whose losses are never negative.
        by_weight: whether it learns a step size for every weight, so that those of new weights are a question.
    """

    name: str
    factory: str = ""
    summary: str = ""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    streams: bool = False
    by_weight: bool = False

    @functools.cached_property
    def settings(self) -> dict[str, Hyperparameter | Option]:
        """Its settings beside those of `OPTIMIZER` by name."""
        own = {} if self.signature is None else self.signature.settings
        own = {**own, **read_signature(_OF_NEW_WEIGHTS).settings} if self.by_weight else own
        given = {*OPTIMIZER, *self.fixed}
        return {name: self._here(name, setting) for name, setting in own.items() if name not in given}

    def _here(self, name: str, setting: Any) -> Any:
        return dataclasses.replace(setting, default=self.defaults[name]) if name in self.defaults else setting

    @property
    def needs(self) -> tuple[str, ...]:
        """The extra arguments that its `update` cannot do without."""
        return () if self.signature is None else self.signature.needs

    def build(self, values: Mapping[str, Any]) -> "optax.GradientTransformation":
        """The transformation with these settings, of which it takes those that it has."""
        import optax

        if self.signature is None:
            return optax.sgd(values["step_size"], *([values["momentum"]] if self.name == "momentum" else []))
        values = {**values, **self.fixed}
        arguments = {name: values[name] for name in self.signature.parameters if name in values}
        made = imported("--optimizer", self.factory)(**arguments)
        if not self.by_weight:
            return made
        return imported("--optimizer", _OF_NEW_WEIGHTS)(made, values["new_step_size"], values["raised_by"])


_OF_NEW_WEIGHTS = "plastic_jax.optimizers.step_sizes:of_new_weights"


def _optimizer(name: str, module: str = "", **fields: Any) -> OptimizerSpec:
    """The optimizer that the function `name` of `plastic_jax.optimizers.<module>` makes; by default in its own file."""
    return OptimizerSpec(name, f"plastic_jax.optimizers.{module or name}:{name}", **fields)


OPTIMIZERS: dict[str, OptimizerSpec] = {
    spec.name: spec
    for spec in (
        OptimizerSpec("sgd", summary="gradient descent"),
        OptimizerSpec("momentum", summary="gradient descent with momentum"),
        _optimizer("adam", fixed={"bias_correction": "standard"}),
        _optimizer("muon"),
        _optimizer("metaoptimize", fixed={"eps": 1e-8}, defaults={"step_size": 1e-3}, by_weight=True),
        _optimizer("hypergradient"),
        _optimizer("obgd", fixed={"eps": 1e-8}, defaults={"step_size": 1.0}, streams=True),
        _optimizer("intentional", fixed={"eps": 1e-8}, defaults={"step_size": 0.5}, streams=True),
        *(_optimizer(name, "parameter_free", defaults={"step_size": 1.0}) for name in ("prodigy", "dog", "mechanic")),
        _optimizer("idbd", by_weight=True),
        OptimizerSpec("k1", "plastic_jax.optimizers.idbd:k1", by_weight=True),
        _optimizer("autostep", by_weight=True),
        _optimizer("smd", by_weight=True),
        _optimizer("fade", fixed={"eps": 1e-8}),
    )
}

OPTIMIZER: Mapping[str, Hyperparameter | Option] = {
    "optimizer": Option("sgd", "the inner optimizer", tuple(OPTIMIZERS)),
    "step_size": Hyperparameter(0.01, 0, 100, "step size of the inner optimizer"),
    "momentum": Hyperparameter(0.9, 0, 1, "velocity decay; used with optimizer=momentum and muon", below=True),
    "b1": Hyperparameter(0.9, 0, 1, "decay of Adam's first moment; used with optimizer=adam and its like", below=True),
    "b2": Hyperparameter(0.999, 0, 1, "decay of second moments; used with optimizer=adam and its like", below=True),
}
"""Settings that every method has, whichever its inner optimizer; the optimizer's own join them."""
