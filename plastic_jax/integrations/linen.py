"""Flax linen's `TrainState` with features."""

import functools
from typing import Any, Self

import optax
from flax.training import train_state


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState`, whose `apply_gradients` hands `features` on to the optimizer.

    Subclass it as Flax's own, with `batch_stats` or whatever else a step keeps:

        state = TrainState.create(apply_fn=model.apply, params=params, tx=continual_backprop(optax.adam(1e-3), ...))
        grads, features = units.grad(loss)(state.params, x, y)
        state = state.apply_gradients(grads=grads, features=features)
    """

    def apply_gradients(
        self, *, grads: Any, features: Any = None, feature_gradients: Any = None, **kwargs: Any
    ) -> Self:
        """One step; `kwargs` are new values of other fields, as in Flax."""
        more = {} if feature_gradients is None else {"feature_gradients": feature_gradients}
        update = functools.partial(optax.with_extra_args_support(self.tx).update, features=features, **more)
        bound: Any = self.replace(tx=optax.GradientTransformationExtraArgs(self.tx.init, update))
        new: Any = train_state.TrainState.apply_gradients(bound, grads=grads, **kwargs)
        return new.replace(tx=self.tx)
