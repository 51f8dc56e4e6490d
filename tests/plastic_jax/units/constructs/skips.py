"""Skip connections, streams and concatenated features."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from tests.plastic_jax.units.constructs.models import construct, dense, layer, linen, normal
from tests.plastic_jax.units.notation import Expected, Model


@construct
def residual_identity() -> Model:
    """The first feature is also added to the second one: zero weights in its readers do not silence it."""

    def body(x):
        x = nn.relu(nn.Dense(4)(x))
        y = nn.relu(nn.Dense(3)(x))
        y = nn.Dense(4)(y)
        return nn.Dense(2)(nn.relu(x + y))

    return linen(
        body,
        normal(3, 5),
        groups={
            "Dense_0": dense(4, "Dense_0", "Dense_1", preserving=False, blocks=4),
            "Dense_1": dense(3, "Dense_1", "Dense_2"),
            "Dense_2": dense(4, "Dense_2", "Dense_3", blocks=4),
        },
    )


@construct
def residual_projection() -> Model:
    def body(x):
        x = nn.relu(nn.Dense(3, name="stem")(x))
        y = nn.Dense(4, name="second")(nn.relu(nn.Dense(3, name="first")(x)))
        return nn.Dense(2, name="head")(nn.relu(y + nn.Dense(4, name="skip")(x)))

    return linen(
        body,
        normal(3, 5),
        groups={
            "stem": dense(3, "stem", "first", "skip"),
            "first": dense(3, "first", "second"),
            "second": Expected(4, layer("second", "skip"), "head/kernel: u o"),
        },
    )


@construct
def residual_convolutions() -> Model:
    """Two post-activation blocks with batch norm: one with a projection, one with an identity skip."""

    def block(width, x, name, project):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        y = nn.relu(norm(name=f"{name}_norm1")(nn.Conv(width, (3, 3), use_bias=False, name=f"{name}_conv1")(x)))
        y = norm(name=f"{name}_norm2")(nn.Conv(width, (3, 3), use_bias=False, name=f"{name}_conv2")(y))
        if project:
            x = norm(name=f"{name}_norm3")(nn.Conv(width, (1, 1), use_bias=False, name=f"{name}_proj")(x))
        return nn.relu(x + y)

    def body(x):
        x = nn.relu(nn.Conv(3, (3, 3), name="stem")(x))
        x = block(4, x, "a", project=True)
        x = block(4, x, "b", project=False)
        return nn.Dense(2, name="head")(jnp.mean(x, axis=(1, 2)))

    made = lambda conv, norm: f"{conv}/kernel: h w i u; {norm}/scale: u; {norm}/bias~shift: u"  # noqa: E731
    stats = lambda norm: f"batch_stats/{norm}/mean: u; batch_stats/{norm}/var: u"  # noqa: E731
    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "stem": Expected(3, layer("stem", use="h w i u"), "a_conv1/kernel: h w u o; a_proj/kernel: h w u o"),
            "a_conv1": Expected(4, made("a_conv1", "a_norm1"), "a_conv2/kernel: h w u o", stats("a_norm1")),
            "a_conv2": Expected(
                4,
                made("a_conv2", "a_norm2") + ";" + made("a_proj", "a_norm3"),
                "b_conv1/kernel: h w u o",
                stats("a_norm2") + ";" + stats("a_norm3"),
                preserving=False,
                blocks=4,
            ),
            "b_conv1": Expected(4, made("b_conv1", "b_norm1"), "b_conv2/kernel: h w u o", stats("b_norm1")),
            "b_conv2": Expected(4, made("b_conv2", "b_norm2"), "head/kernel: u o", stats("b_norm2"), blocks=4),
        },
    )


@construct
def residual_stream() -> Model:
    """Pre-norm blocks write into a sum that later blocks read: only the units inside the blocks can be replaced."""

    def body(x):
        x = nn.Dense(3, name="stem")(x)
        for i in range(2):
            y = nn.gelu(nn.Dense(4, name=f"in{i}")(nn.LayerNorm(name=f"norm{i}")(x)))
            x = x + nn.Dense(3, name=f"out{i}")(y)
        return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(x))

    groups = {f"in{i}": dense(4, f"in{i}", f"out{i}") for i in range(2)}
    return linen(body, normal(3, 5), groups=groups, left_out="stem")


@construct
def pre_activation_stream() -> Model:
    def body(x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(3, (3, 3), name="stem")(x)
        for i in range(2):
            y = nn.relu(norm(name=f"norm{i}")(x))
            y = nn.Conv(4, (3, 3), name=f"in{i}")(y)
            x = x + nn.Conv(3, (3, 3), name=f"out{i}")(nn.relu(y))
        return nn.Dense(2, name="head")(jnp.mean(nn.relu(norm(name="norm")(x)), axis=(1, 2)))

    groups = {f"in{i}": Expected(4, layer(f"in{i}", use="h w i u"), f"out{i}/kernel: h w u o") for i in range(2)}
    return linen(body, normal(2, 4, 4, 2), groups=groups, left_out="stem")


@construct
def concatenated_features() -> Model:
    def body(x):
        a = nn.relu(nn.Dense(4)(x))
        b = nn.relu(nn.Dense(3)(a))
        return nn.Dense(2)(jnp.concatenate([a, b], axis=-1))

    return linen(
        body,
        normal(3, 5),
        groups={
            "Dense_0": Expected(4, layer("Dense_0"), "Dense_1/kernel: u o; Dense_2/kernel[:4]: u o"),
            "Dense_1": Expected(3, layer("Dense_1"), "Dense_2/kernel[4:]: u o"),
        },
    )


@construct
def input_beside_features() -> Model:
    """The input itself is concatenated to the features: its rows belong to no unit."""

    def body(x):
        x = jnp.concatenate([x, nn.relu(nn.Dense(4)(x))], axis=-1)
        return nn.Dense(2)(x)

    group = Expected(4, layer("Dense_0"), "Dense_1/kernel[5:]: u o")
    return linen(body, normal(3, 5), groups={"Dense_0": group})


@construct
def dense_net() -> Model:
    """Every layer norms and reads all that was made before: each unit has a scale and a shift per reader."""

    def body(x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.Conv(3, (3, 3), name="stem")(x)
        for i in range(2):
            y = nn.Conv(2, (3, 3), name=f"conv{i}")(nn.relu(norm(name=f"norm{i}")(x)))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(2, name="head")(jnp.mean(nn.relu(norm(name="norm")(x)), axis=(1, 2)))

    def affine(norms, window):
        return ";".join(f"{n}/scale[{window}]: u; {n}/bias~shift[{window}]: u" for n in norms)

    def stats(norms, window):
        return ";".join(f"batch_stats/{n}/{s}[{window}]: u" for n in norms for s in ("mean", "var"))

    def group(width, made, window, norms, read):
        outgoing = [f"{r}/kernel[:, :, {window}]: h w u o" for r in read] + [f"head/kernel[{window}]: u o"]
        incoming = layer(made, use="h w i u") + ";" + affine(norms, window)
        return Expected(width, incoming, ";".join(outgoing), stats(norms, window))

    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "stem": group(3, "stem", "0:3", ("norm0", "norm1", "norm"), ("conv0", "conv1")),
            "conv0": group(2, "conv0", "3:5", ("norm1", "norm"), ("conv1",)),
            "conv1": group(2, "conv1", "5:7", ("norm",), ()),
        },
    )


@construct
def u_net() -> Model:
    """The up-convolution is linear: what it makes is no feature, what is beside it is."""

    def body(x):
        down = nn.relu(nn.Conv(3, (3, 3), name="down")(x))
        low = nn.relu(nn.Conv(4, (3, 3), name="low")(nn.max_pool(down, (2, 2), strides=(2, 2))))
        up = nn.ConvTranspose(2, (2, 2), strides=(2, 2), name="up")(low)
        x = nn.relu(nn.Conv(3, (3, 3), name="merge")(jnp.concatenate([down, up], axis=-1)))
        return nn.Conv(2, (1, 1), name="head")(x)

    conv = functools.partial(layer, use="h w i u")
    return linen(
        body,
        normal(2, 4, 4, 2),
        groups={
            "down": Expected(3, conv("down"), "low/kernel: h w u o; merge/kernel[:, :, :3]: h w u o"),
            "low": Expected(4, conv("low"), "up/kernel: h w u o"),
            "merge": Expected(3, conv("merge"), "head/kernel: h w u o"),
        },
        left_out="up",
    )
