"""The unit graph of a chain of dense layers, written down from the network's own fields."""

from typing import Any

from plastic_jax.networks import MLP
from plastic_jax.units.graph import Slice, UnitGraph, UnitGroup


def mlp_units(network: MLP, params: Any) -> UnitGraph:
    """The hidden units of an `MLP`: layer `i` is made by `Dense_i` and read by `Dense_{i+1}`.

    Args:
        network: the network; its `widths` and `activation` name the groups.
        params: the parameters, arrays or their shapes, `{"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}`.

    Raises:
        ValueError: the parameters are not those of the network.
    """
    groups = []
    for i, width in enumerate(network.widths):
        made, read = f"Dense_{i}", f"Dense_{i + 1}"
        for layer in (made, read):
            if layer not in params:
                raise ValueError(f"mlp_units: no layer '{layer}' in the parameters; found: {', '.join(sorted(params))}")
        rows, columns = params[made]["kernel"].shape, params[read]["kernel"].shape
        if (rows[1], columns[0]) != (width, width):
            raise ValueError(
                f"mlp_units: layer '{made}' has {rows[1]} units, '{read}' reads {columns[0]}, expected {width}"
            )
        groups.append(
            UnitGroup(
                name=made,
                width=width,
                copies=1,
                incoming=(
                    Slice(f"{made}/kernel", rows, (1,), "kernel"),
                    Slice(f"{made}/bias", (width,), (0,), "bias"),
                ),
                outgoing=(Slice(f"{read}/kernel", columns, (0,), "kernel", bias=f"{read}/bias"),),
                activation=network.activation,
            )
        )

    def forward(params: Any, *inputs: Any) -> tuple[Any, dict[str, Any]]:
        output, sown = network.apply({"params": params}, *inputs, mutable=["features"])
        hidden: Any = sown.get("features", {})
        return output, {group.name: hidden[f"hidden_{i}"][0] for i, group in enumerate(groups)}

    return UnitGraph(tuple(groups), forward)
