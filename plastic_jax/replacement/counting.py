"""How many units go at a step: from an expected number, mostly a small fraction, to a whole one."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from plastic_jax.paths import leaf_key

CountRule = Callable[[jax.Array, jax.Array], jax.Array]


def expected_replacements(
    rate: jax.Array, eligible: jax.Array, width: int, units: Literal["eligible", "all"]
) -> jax.Array:
    """What a step adds to the number owed: `rate` times the eligible units, or times all once one is eligible.

    Source: eligible: published code for dense layers; all: published code for convolutional and residual networks
    (Dohare et al., Nature 632, 2024).
    """
    return rate * (eligible if units == "eligible" else jnp.where(eligible > 0, width, 0))


def owed(
    rule: Literal["accumulate", "bernoulli"] | CountRule,
    accumulator: jax.Array,
    expected: jax.Array,
    most: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The accumulator after this step, and how many units go now: int32, at most `most`, 0 if nothing is expected.

    accumulate:  s <- s + expected,  n = min(floor(s), most),  s <- s - floor(s)
    bernoulli:   n = [U(0, 1) <= expected] if expected < 1 else floor(expected)
    a function:  n = rule(key, expected)

    So no debt outlives the step: a fraction of a unit is carried on, and whole units beyond `most` are forgotten.

    Args:
        rule: the rule.
        accumulator: float `[2]`, `s` and the rounding error of that sum.
        expected: 0-d float, the rate times the number of eligible units.
        most: 0-d int32.
        key: typed key of this step and group.

    Source: Dohare et al., Nature 632 (2024), Methods (accumulate) and published code (both).
    """
    if callable(rule):
        n = rule(key, expected)
    elif rule == "bernoulli":
        drawn = jax.random.uniform(leaf_key(key, "count"), dtype=expected.dtype) <= expected
        n = jnp.where(expected < 1.0, drawn.astype(expected.dtype), jnp.floor(expected))
    else:
        total, error = _add(accumulator[0], accumulator[1], expected)
        n = jnp.floor(total)
        accumulator = jnp.stack([total - n, error])
    return accumulator, jnp.where(expected > 0, jnp.minimum(n, most), 0).astype(jnp.int32)


def _add(total: jax.Array, error: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum: at rates near 1e-6 a plain float32 sum is off by a few percent, or stalls before it reaches 1."""
    if term.dtype == jnp.float64:
        return total + term, error
    term = term - error
    grown = total + term
    return grown, (grown - total) - term


def rate_warnings(
    widths: Mapping[str, int],
    steps: int,
    *,
    replacement_rate: float,
    maturity_threshold: int = 100,
    max_replacements: int = 1,
) -> list[str]:
    """What a run of continual backprop should know of its replacement rate beforehand: one line per finding.

    Too low: a group of `width` units loses `rate * width` units a step once all are mature, so that fewer than one is
    expected in the run if `rate * width * (steps - maturity_threshold) < 1`.
    Too high: a step lets at most `max_replacements` units of a group go, and the rest is forgotten, so that all rates
    above `max_replacements / width` start alike.

    Args:
        widths: number of units by group name.
        steps: updates in the run.
        replacement_rate: share of the mature units replaced per step; other settings as in `continual_backprop`.
    """
    if replacement_rate <= 0 or not widths:
        return []
    rate, lines = f"replacement_rate={replacement_rate:g}", []
    expected = {name: replacement_rate * w * max(0, steps - maturity_threshold) for name, w in widths.items()}
    few = [name for name, n in expected.items() if n < 1]
    if few:
        where = "any group" if len(few) == len(widths) else ", ".join(few)
        most = max(expected[name] for name in few)
        lines.append(f"{rate}: less than one replacement is expected in {steps} steps in {where} (at most {most:.2g})")
    bounds = {name: min(max_replacements, w) / w for name, w in widths.items()}
    bound = [name for name, limit in bounds.items() if replacement_rate > limit]
    if bound:
        limit = max(bounds[name] for name in bound)
        lines.append(
            f"{rate}: max_replacements={max_replacements} bounds the replacements of {', '.join(bound)}; rates above "
            f"{limit:.2g} give nearly the same run"
        )
    return lines
