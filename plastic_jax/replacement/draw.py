"""Which units go, and the fresh weights that they are given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.paths import get_leaf, leaf_key, name_number
from plastic_jax.replacement.initializers import Initializer, UnitInitializer
from plastic_jax.units.graph import UnitGroup

_LOOP_FROM = 4  # for fewer groups that are alike, a loop costs the step more time than it saves the compiler


class Replacement(NamedTuple):
    """Units of one group that go at this step.

    Attributes:
        index: int32 `[n]`, their numbers.
        valid: bool `[n]`, which entries of `index` count.
        fresh: per incoming kernel, by the slice's name, `[n, copies * fan_in]` new weights; a bias that has an entry,
            `[n, copies]`, gets that in place of 0.
        amount: float `[n]`, how far the kernels go from what they are to what a new unit's are, in [0, 1]; biases,
            scales and shifts stay. `None`: all the way, biases, scales and shifts too.
    """

    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    valid: jax.Array
    fresh: dict[str, jax.Array]
    amount: jax.Array | None = None

    @classmethod
    def of_none(cls) -> "Replacement":
        """No unit at all."""
        return cls(jnp.zeros(0, jnp.int32), jnp.zeros(0, bool), {})

    def mask(self, width: int) -> jax.Array:
        """bool `[width]`, true for the units that go."""
        return jnp.any(self.one_hot(width), axis=0)

    def share(self, width: int) -> jax.Array:
        """`[width]`, the mask, or with `amount` how far each unit goes."""
        if self.amount is None:
            return self.mask(width)
        return jnp.sum(jnp.where(self.one_hot(width), self.amount[:, None], 0), axis=0)

    def one_hot(self, width: int) -> jax.Array:
        """bool `[n, width]`, for each entry the unit that goes, if it counts."""
        return (self.index[:, None] == jnp.arange(width)) & self.valid[:, None]


def draw_replacement(
    group: UnitGroup,
    index: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    initializer: UnitInitializer,
    params: Any,
    bias_initializer: UnitInitializer | None = None,
) -> Replacement:
    """Fresh incoming weights for the units `index`; each kernel is drawn with a key made from its own name.

    Where a kernel makes each copy of a unit with weights of its own, every copy gets a draw of its own. A fresh bias is
    the first entry of a row that `bias_initializer` draws for the unit's first kernel.
    """
    numbers = [name_number(s.name) for s in group.incoming_kernels]
    fresh = _named(group, _draw(group, len(index), key, numbers, initializer, params))
    for s in group.incoming:
        if s.role == "bias" and bias_initializer is not None:
            size, fan, dtype = s.copies * s.fan, group.incoming_kernels[0].fan, get_leaf(params, s.path).dtype
            rows = bias_initializer(leaf_key(key, s.name), len(index) * size, fan, group.width, dtype)
            fresh[s.name] = rows[:, 0].reshape(len(index), size)
    return Replacement(index, valid, fresh)


def choose_and_draw(
    groups: Sequence[UnitGroup],
    choose: Callable[..., tuple[jax.Array, jax.Array]],
    known: Mapping[str, tuple[jax.Array, ...]],
    key: jax.Array,
    initializers: Mapping[str, UnitInitializer],
    params: Any,
) -> dict[str, Replacement]:
    """The units of every group that go, with fresh weights as `draw_replacement` gives them.

    The layers of a deep network are much alike. For those that differ in their numbers alone one program is compiled,
    which loops over them; else most of the time to compile a step would go into random numbers.

    Args:
        groups: the groups.
        choose: `choose(*known) -> (index, valid)`, as in `Replacement`.
        known: by group name, what `choose` is given.
        key: the step's key; each group's is made from its own name.
        initializers: by group name.
        params: the model's parameters.
    """
    kinds: dict[Any, list[UnitGroup]] = {}
    for g in groups:
        kernels = tuple((s.copies, s.fan, get_leaf(params, s.path).dtype) for s in g.incoming_kernels)
        numbers = tuple((x.shape, x.dtype) for x in known[g.name])
        law = initializers[g.name]
        same = law if isinstance(law, Initializer) else id(law)
        kinds.setdefault((g.width, kernels, numbers, same), []).append(g)

    def some(first: UnitGroup, name: Any, kernels: Any, known: tuple[jax.Array, ...]) -> tuple[Any, ...]:
        index, valid = choose(*known)
        key_of_group = jax.random.fold_in(key, name)
        return index, valid, _draw(first, len(index), key_of_group, kernels, initializers[first.name], params)

    found: dict[str, Replacement] = {}
    for alike in kinds.values():
        first = alike[0]
        names = np.array([name_number(g.name) for g in alike], np.uint32)
        kernels = np.array([[name_number(s.name) for s in g.incoming_kernels] for g in alike], np.uint32)
        theirs = [known[g.name] for g in alike]
        if len(alike) < _LOOP_FROM:
            drawn = [some(first, *each) for each in zip(names, kernels, theirs, strict=True)]
        else:
            each = names, kernels, jax.tree.map(lambda *x: jnp.stack(x), *theirs)
            stacked = jax.lax.map(lambda x, first=first: some(first, *x), each)
            drawn = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(alike))]
        for g, (index, valid, rows) in zip(alike, drawn, strict=True):
            found[g.name] = Replacement(index, valid, _named(g, rows))
    return found


def _draw(
    group: UnitGroup, n: int, key: jax.Array, numbers: Sequence[Any], initializer: UnitInitializer, params: Any
) -> list[jax.Array]:
    """Fresh rows of `n` units for every incoming kernel, each drawn with the key of its number."""
    return [
        initializer(
            jax.random.fold_in(key, number), n * s.copies, s.fan, group.width, get_leaf(params, s.path).dtype
        ).reshape(n, s.copies * s.fan)
        for s, number in zip(group.incoming_kernels, numbers, strict=True)
    ]


def _named(group: UnitGroup, rows: Sequence[jax.Array]) -> dict[str, jax.Array]:
    return {s.name: own for s, own in zip(group.incoming_kernels, rows, strict=True)}
