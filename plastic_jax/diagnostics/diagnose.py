"""A look inside any JAX model: a table with a row per hidden layer."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastic_jax.diagnostics import metrics
from plastic_jax.paths import get_leaf
from plastic_jax.replacement.reset import check_units
from plastic_jax.replacement.statistics import feature_matrix
from plastic_jax.units import UnitGraph, UnitGroup, trace_units
from plastic_jax.units.activation import Activation

_HEADS = {
    "name": "layer",
    "activation": "activation",
    "units": "units",
    "samples": "samples",
    "dead": "dead %",
    "dormant_nonzero": "h!=0 rare %",
    "dormant_positive": "h>0 rare %",
    "dormant_redo": "ReDo %",
    "saturated": "saturated %",
    "rank": "rank",
    "effective_rank": "effective",
    "approximate_rank": "approximate",
    "stable_rank": "stable",
    "weight_magnitude": "mean |w|",
    "gradient_norm": "gradient",
}
_SHARES = ("dead", "dormant_nonzero", "dormant_positive", "dormant_redo", "saturated")
_RANKS = {
    "rank": metrics.rank_of,
    "effective_rank": metrics.effective_rank_of,
    "approximate_rank": metrics.approximate_rank_of,
    "stable_rank": metrics.stable_rank_of,
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is seen of one group of units; NaN where a measure has no meaning.

    Attributes:
        name: the group.
        activation: name of its nonlinearity, as in the unit graph.
        units: number of units.
        samples: values seen of each unit, examples times positions.
        dead: share of the units that are 0 on all samples.
        dormant_nonzero: share with `h != 0` on less than `threshold` of the samples.
        dormant_positive: share with `h > 0` on at most `threshold` of the samples.
        dormant_redo: share with `E|h_i| / mean_k E|h_k| <= redo_threshold`.
        saturated: share near a limit of an activation that has two (tanh, sigmoid) on 99 % of the samples.
        rank, effective_rank, approximate_rank, stable_rank: as in `plastic_jax.metrics`, in units.
        weight_magnitude: mean |w| of the incoming kernels.
        gradient_norm: Euclidean norm of the gradient of the mean loss in the incoming kernels.
        missing: by the name of a measure, why it is NaN.
        limits: by the name of a measure, what else than the network bounds it.
    """

    name: str
    activation: str
    units: int
    samples: int
    dead: float
    dormant_nonzero: float
    dormant_positive: float
    dormant_redo: float
    saturated: float
    rank: float
    effective_rank: float
    approximate_rank: float
    stable_rank: float
    weight_magnitude: float
    gradient_norm: float
    missing: dict[str, str]
    limits: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`: `print` shows a table, `rows` has the numbers, `left_out` what is in no row and why."""

    rows: tuple[Layer, ...]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.rows:
            return "\n".join(["no hidden units", *self.left_out])
        table = [list(_HEADS.values()), *([_text(row, field) for field in _HEADS] for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEADS))]
        lines = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in table
        ]
        lines = [line.rstrip() for line in lines]
        return "\n".join([*lines, *_footnotes(self.rows), *self.left_out])


def _footnotes(rows: tuple[Layer, ...]) -> list[str]:
    """A line for every reason: for which measures, and, unless in all, in which layers."""
    layers: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for field, why in (row.missing | row.limits).items():
            layers.setdefault((_HEADS[field], why), []).append(row.name)
    measures: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (head, why), names in layers.items():
        measures.setdefault((why, tuple(names)), []).append(head)
    return [
        f"{', '.join(heads)}: {why}" + (f" ({', '.join(names)})" if len(names) < len(rows) else "")
        for (why, names), heads in measures.items()
    ]


def diagnose(
    apply: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    units: UnitGraph | None = None,
    variables: Any = None,
    loss: Callable[[Any, Any], jax.Array] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    threshold: float = 0.01,
    redo_threshold: float = 0.025,
    rank_samples: int = 4096,
) -> Diagnosis:
    """What the hidden units of a model do on some data.

    The values are those that the next layer reads, after pooling and normalisation. All statistics are over all batches
    together; a convolution's positions count as samples. The ranks take one
    singular value decomposition a layer of at most `rank_samples` samples, drawn at random (always the same ones).

    Example:
        >>> import jax
        >>> from plastic_jax import MLP, diagnose
        >>> network = MLP(widths=(8, 4), outputs=1)
        >>> x = jax.random.normal(jax.random.key(0), (64, 3))
        >>> params = network.init(jax.random.key(1), x)["params"]
        >>> apply = lambda params, x: network.apply({"params": params}, x)
        >>> found = diagnose(apply, params, [x])
        >>> [(row.name, row.units, row.dead) for row in found.rows]
        [('Dense_0', 8, 0.0), ('Dense_1', 4, 0.0)]

    Args:
        apply: the model, `apply(params, *inputs)`, or `apply(params, variables, *inputs)` where `variables` are given.
        params: its parameters, any pytree.
        batches: an iterable of batches: the input, or a tuple or list of all inputs, unless `inputs` says otherwise.
        units: the model's unit graph; found by `trace_units` on the first batch where it is not given.
        variables: what else the model needs, such as batch statistics.
        loss: `loss(output, batch)`, 0-d, for the gradient norm; its mean over the batches is differentiated.
        inputs: the inputs in a batch, `lambda batch: batch[0]` for pairs of input and label.
        threshold: share of the samples below which a unit is dormant.
        redo_threshold: bound on the normalised activation, ReDo's `tau`.
        rank_samples: bound on the samples that ranks are computed from.

    Returns:
        The diagnosis, a row per group of the graph.

    Raises:
        ValueError: there is no batch, or an array in place of batches; a threshold is outside [0, 1]; or the graph does
            not fit the parameters.

    References:
        Dohare et al., Nature 632, 2024 (dead and dormant units, ranks, weight magnitude); Sokar et al., "The dormant
        neuron phenomenon in deep reinforcement learning", ICML 2023 (normalised activation).
    """
    for name, value in (("threshold", threshold), ("redo_threshold", redo_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"diagnose: {name}={value} is not in [0, 1]")
    if hasattr(batches, "shape"):
        raise ValueError("diagnose: batches is one array; give an iterable of batches, [x] for a single one")
    if rank_samples < 1:
        raise ValueError(f"diagnose: rank_samples={rank_samples} is not positive")
    fixed = (params,) if variables is None else (params, variables)
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise ValueError("diagnose: batches is empty; at least one is needed")
    if units is None:
        units = trace_units(apply, params, *_inputs(first, inputs), variables=variables)
    check_units(units, params, "diagnose")
    graph = units

    def look(fixed: Any, batch: Any) -> tuple[dict[str, jax.Array], dict[str, dict[str, jax.Array]], Any]:
        def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            output, features = graph.apply(params, *fixed[1:], *_inputs(batch, inputs))
            return (jnp.zeros([]) if loss is None else loss(output, batch)), features

        grads, features = None, {}
        if loss is None:
            features = objective(fixed[0])[1]
        else:
            grads, features = jax.grad(objective, has_aux=True)(fixed[0])
        values = {g.name: feature_matrix(g, features[g.name]) for g in graph.groups}
        return values, {g.name: _counts(values[g.name], g.activation) for g in graph.groups}, grads

    compiled = jax.jit(look)
    seen = {g.name: _Seen(g, rank_samples) for g in graph.groups}
    total, number = None, 0
    for batch in itertools.chain([first], stream):
        values, counts, grads = compiled(fixed, batch)
        number += 1
        for name, one in seen.items():
            one.add(np.asarray(values[name]), counts[name])
        if loss is not None:
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    mean = None if total is None else jax.tree.map(lambda g: g / number, total)
    rows = tuple(seen[g.name].row(params, mean, threshold, redo_threshold) for g in graph.groups)
    return Diagnosis(rows, tuple(f"not shown: {g.name} ({g.note})" for g in graph.left_out))


class _Seen:
    """Sums over batches of one group, and a uniform sample of its values."""

    def __init__(self, group: UnitGroup, most: int) -> None:
        self.group, self.most, self.samples = group, most, 0
        self.sums: dict[str, np.ndarray] = {}
        self.kept = np.zeros((0, group.width), np.float32)
        self._lots = np.zeros(0)
        self._draw = np.random.default_rng(0)

    def add(self, values: np.ndarray, counts: dict[str, jax.Array]) -> None:
        self.samples += len(values)
        for name, count in counts.items():
            # Counts are added up in int64, sums of magnitudes in float64.
            now = np.asarray(count)
            self.sums[name] = self.sums.get(name, 0) + now.astype(np.float64 if now.dtype.kind == "f" else np.int64)
        lots = np.concatenate([self._lots, self._draw.random(len(values))])
        kept = np.concatenate([self.kept, values])
        if len(lots) > self.most:  # the rows with the smallest lots are a uniform sample of all rows
            chosen = np.argpartition(lots, self.most)[: self.most]
            lots, kept = lots[chosen], kept[chosen]
        self._lots, self.kept = lots, kept

    def row(self, params: Any, grads: Any, threshold: float, redo_threshold: float) -> Layer:
        group, n = self.group, self.samples
        limit = round(threshold * n, 6)
        magnitude = self.sums["magnitude"] / n
        layer_mean = magnitude.mean()
        found = {
            "dead": np.mean(self.sums["nonzero"] == 0),
            "dormant_nonzero": np.mean(self.sums["nonzero"] < math.ceil(limit)),
            "dormant_positive": np.mean(self.sums["positive"] <= math.floor(limit)),
            "dormant_redo": np.mean(magnitude <= redo_threshold * layer_mean) if layer_mean > 0 else 1.0,
        }
        if group.activation.limits:
            found["saturated"] = np.mean(self.sums["saturated"] >= math.ceil(round(0.99 * n, 6)))
        finite = np.isfinite(self.sums["magnitude"]).all()
        if finite:
            found |= _ranks(self.kept)
        kernels = group.incoming_kernels
        found["weight_magnitude"] = _mean_magnitude([np.asarray(s.view(get_leaf(params, s.path))) for s in kernels])
        if grads is not None:
            parts = [np.asarray(s.view(get_leaf(grads, s.path)), np.float64) for s in kernels]
            found["gradient_norm"] = math.sqrt(sum(float(np.sum(part**2)) for part in parts))
        missing, limits = self._missing(bool(finite), grads is not None), {}
        if len(self.kept) < group.width:
            limits = dict.fromkeys(_RANKS, f"at most {len(self.kept)}, the number of samples")
        measures = [field for field in _HEADS if field not in ("name", "activation", "units", "samples")]
        given = {m: math.nan if m in missing else float(found[m]) for m in measures}
        return Layer(group.name, group.activation.name, group.width, n, **given, missing=missing, limits=limits)

    def _missing(self, finite: bool, loss: bool) -> dict[str, str]:
        activation, notes = self.group.activation, {}
        if not activation.off:
            notes |= dict.fromkeys(("dead", "dormant_nonzero"), f"{activation} is not switched off at 0")
        if activation.positive:
            notes["dormant_positive"] = f"{activation} is always positive"
        if activation.odd:
            notes["dormant_positive"] = f"{activation} is symmetric: negative values are no less active"
        if activation.name == "linear":
            notes |= dict.fromkeys(("dead", "dormant_nonzero", "dormant_positive"), "linear units are never off")
        if activation.limits is None:
            notes["saturated"] = "for activations with two limits only, as tanh and sigmoid"
        elif not activation.off:
            notes["dormant_redo"] = f"a large value of {activation} may mean that it is saturated"
        if not finite:
            notes |= dict.fromkeys((*_SHARES, *_RANKS), "values that are not finite")
        if not loss:
            notes["gradient_norm"] = "no loss given"
        return notes


def _inputs(batch: Any, inputs: Callable[[Any], Any] | None) -> tuple[Any, ...]:
    given = batch if inputs is None else inputs(batch)
    return tuple(given) if isinstance(given, tuple | list) else (given,)


@jax.jit
def _ranks(values: jax.Array) -> dict[str, jax.Array]:
    sigma = metrics.singular_values(values)
    return {name: measure(sigma) for name, measure in _RANKS.items()}


def _counts(values: jax.Array, activation: Activation) -> dict[str, jax.Array]:
    """Per unit, on how many samples it is not 0, positive, near a limit; and the sum of |h|."""
    count = lambda true: jnp.sum(true, axis=0, dtype=jnp.int32)  # noqa: E731
    return {
        "nonzero": count(values != 0),
        "positive": count(values > 0),
        "magnitude": jnp.sum(jnp.abs(values), axis=0),
    } | ({"saturated": count(activation.saturated(values))} if activation.limits else {})


def _mean_magnitude(parts: list[np.ndarray]) -> float:
    return sum(float(np.sum(np.abs(part.astype(np.float64)))) for part in parts) / max(sum(p.size for p in parts), 1)


def _text(row: Layer, field: str) -> str:
    value = getattr(row, field)
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "-"
    if field in _SHARES:
        return f"{100 * value:.1f}"
    if field in ("units", "samples", "rank", "approximate_rank", "stable_rank"):
        return f"{value:.0f}"
    return f"{value:.1f}" if field == "effective_rank" else f"{value:.3g}"
