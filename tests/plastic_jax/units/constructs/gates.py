"""Units that are products: gated layers."""

import flax.linen as nn
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, dense, layer, linen, normal
from tests.plastic_jax.units.notation import Expected, Model


@construct
def glu() -> Model:
    group = Expected(4, "Dense_0/kernel: i (p u); Dense_0/bias: (p u)", "Dense_1/kernel: u o")

    def body(x):
        x = nn.glu(nn.Dense(8)(x))
        return nn.Dense(2)(x)

    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def swiglu_of_two_kernels() -> Model:
    def body(x):
        gate, up = nn.Dense(4, use_bias=False, name="gate")(x), nn.Dense(4, use_bias=False, name="up")(x)
        return nn.Dense(2, name="down")(nn.silu(gate) * up)

    group = Expected(4, "gate/kernel: i u; up/kernel: i u", "down/kernel: u o")
    feature = lambda p, x: nn.silu(x @ p["gate"]["kernel"]) * (x @ p["up"]["kernel"])  # noqa: E731
    return linen(body, normal(3, 5), groups={"gate": group}, features={"gate": feature})


@construct
def swiglu_of_one_kernel() -> Model:
    def body(x):
        gate, up = jnp.split(nn.Dense(8)(x), 2, axis=-1)
        return nn.Dense(2)(nn.silu(gate) * up)

    group = Expected(4, "Dense_0/kernel: i (p u); Dense_0/bias: (p u)", "Dense_1/kernel: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def squeeze_and_excite() -> Model:
    def body(x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        gate = nn.relu(nn.Dense(2)(jnp.mean(x, axis=(1, 2))))
        gate = nn.sigmoid(nn.Dense(4)(gate))
        x = x * gate[:, None, None, :]
        return jnp.mean(nn.Conv(3, (1, 1))(x), axis=(1, 2))

    return linen(
        body,
        normal(2, 4, 4, 3),
        groups={
            "Conv_0": Expected(
                4,
                layer("Conv_0", use="h w i u") + ";" + layer("Dense_1"),
                "Conv_1/kernel: h w u o; Dense_0/kernel: u o",
            ),
            "Dense_0": dense(2, "Dense_0", "Dense_1"),
        },
    )
