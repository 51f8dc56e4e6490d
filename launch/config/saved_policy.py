"""Policies out of run folders, and the model task with one of them as the behaviour."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from launch.config.branch import Source, find_source
from launch.config.experiment import Plan, experiment_of, resolve
from launch.errors import InputError
from launch.storage.checkpoint import Checkpoints
from launch.storage.contents import first_good, unit_of_lane, variables_of
from plastic_jax.learners.moments import Moments, normalised
from plastic_jax.learners.ppo import initial_memory
from tasks.ant_model import AntModel

Policy = Callable[[Any, Moments | None, jax.Array, jax.Array | None], jax.Array]
"""`(params, observation moments, observations [n, ...], noise [n, ...] or None) -> actions [n, ...]`."""

_OBSERVATIONS = "learner/observations/"
_FLAG = "policy"


def policy_of(plan: Plan, label: str) -> Policy:
    """What the networks of a job do: the policy's mean, or with noise a draw from it.

    Raises:
        InputError: they remember, and would need their memory with every observation.
    """
    network: nn.Module = plan.job(label).network
    if initial_memory(network, 1) is not None:
        raise InputError(f"{label}: its policy has a memory, and only policies without one can be shown or act here")

    def act(params: Any, moments: Moments | None, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        mean, log_std, _ = network.apply({"params": params}, normalised(moments, x))
        return mean if noise is None else mean + jnp.exp(log_std) * noise

    return act


def moments_of(tree: Mapping[str, Any], lane: int) -> Moments | None:
    """By what a lane's observations are normalised, out of a checkpoint's leaves; `None` where they are not."""
    parts = {name: tree.get(_OBSERVATIONS + name) for name in Moments._fields}
    return None if parts["mean"] is None else Moments(**{name: each[lane] for name, each in parts.items()})


@dataclasses.dataclass(frozen=True)
class AntModelOfRun(AntModel):
    """Learn what one step of an environment leads to, while something of it changes; see `tasks.ant_model.AntModel`.

    At every step all `environments` take one action, and the batch is what came of it: the network maps observation
    and action to the change of the observation and the reward, in units of their deviations on the first ground. Its
    errors over one step and over ten are measured before and after every change.

    Attributes:
        policy: `DIR/LABEL@STEP`, a checkpoint of a run of PPO on this environment whose first lane's policy acts, drawn
            as in training; `None`: random actions, each correlated over about ten steps.

    Raises:
        ValueError: a field is none of what is allowed, or there is no such policy, or it is of another body.
    """

    policy: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy is not None and not isinstance(self.policy, str):
            raise ValueError(f"policy: got {self.policy!r}, allowed is a text of the form DIR/LABEL@STEP")

    @property
    def spec(self) -> Any:
        self._source  # noqa: B018 -- raises where there is no such policy
        return super().spec

    @property
    def note(self) -> str:
        return super().note + (f"; actions of {self.policy}" if self.policy else "; random actions")

    def load(self) -> Any:
        """Parameters of the policy, and by what its observations are normalised; nothing where actions are random."""
        if self._source is None:
            return ()
        source, _ = self._source
        unit, lane = unit_of_lane(source.folder, source.meta, 0)
        saved = first_good(unit, [source.step])
        if saved is None:
            there = ", ".join(map(str, Checkpoints(unit).steps())) or "none"
            raise ValueError(
                f"policy: {source.folder} has no good checkpoint of step {source.step} (there: {there}); keep one with "
                f"--checkpoint_at={source.step}"
            )
        params = variables_of(saved, lane)["params"]
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise ValueError(f"policy: the first lane of {source.folder} has diverged by step {source.step}")
        return params, moments_of(saved.tree, lane)

    def actions(self, state: Any, observation: jax.Array, noise: jax.Array, data: Any) -> jax.Array:
        if self._source is None:
            return super().actions(state, observation, noise, data)
        _, policy = self._source
        rows = (each.reshape(-1, each.shape[-1]) for each in (observation, noise))
        return policy(*data, *rows).reshape(noise.shape)

    def renewed(self, noise: jax.Array, drawn: jax.Array) -> jax.Array:
        return super().renewed(noise, drawn) if self._source is None else drawn

    @functools.cached_property
    def _source(self) -> tuple[Source, Policy] | None:
        """The run that the policy is of, and what its networks do."""
        if self.policy is None:
            return None
        try:
            source = find_source(self.policy, _FLAG)
            if "learner.rollout" not in source.meta["settings"]:
                raise ValueError(f"policy: {source.folder} is a run of {source.meta['task']}, which has no policy")
            plan = resolve(dataclasses.replace(experiment_of(source.meta), branch_from=""))
            policy = policy_of(plan, source.meta["label"])
        except InputError as error:
            raise ValueError(str(error)) from None
        there, here = plan.task.spec, self._worlds.spec
        if (there.input_shape, there.outputs) != (here.input_shape, here.outputs):
            bodies = [f"{spec.input_shape[0]} observations and {spec.outputs} actions" for spec in (there, here)]
            raise ValueError(
                f"policy: {source.folder} acts on another body, with {bodies[0]}; {self.environment} has {bodies[1]}"
            )
        return source, policy
