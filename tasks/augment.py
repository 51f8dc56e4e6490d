"""Pictures changed at random on the device, inside a compiled loop: flip, crop and rotation as one map of positions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Draws(NamedTuple):
    """What chance decides, for every picture by itself.

    Attributes:
        flip: bool `[batch]`, whether left and right are swapped.
        top: int32 `[batch]`, first row of the crop in the padded picture, 0 to 2 `crop_padding`.
        left: int32 `[batch]`, first column of the crop, likewise.
        angle: float32 `[batch]`, degrees, 0 to `rotation`.
    """

    flip: jax.Array
    top: jax.Array
    left: jax.Array
    angle: jax.Array


def augmented(
    key: jax.Array,
    x: jax.Array | np.ndarray,
    *,
    flip: bool = True,
    crop_padding: int = 4,
    rotation: float = 15.0,
    fill: float | Sequence[float] = 0,
) -> jax.Array:
    """Every picture flipped, cropped and rotated by chances of its own, as published for class-incremental CIFAR-100.

    One after the other: left and right swapped with probability 1/2; a crop of the picture's own size after padding
    every side by `crop_padding` reflected pixels (the edge itself is not repeated), all places equally likely; a
    rotation by an angle uniform in [0, `rotation`] degrees: one-sided, nearest pixel, `fill` where the source lies
    outside. Meant for pictures already normalised, whose 0 is the mean of the channel.

    Picture `i` depends on `key`, `i` and the picture only, not on how many there are.

    Args:
        key: a key that is used nowhere else.
        x: `[batch, height, width, channels]`, any type of number.
        flip: whether pictures are flipped at all.
        crop_padding: pixels, 0 for no crop, less than the height and the width.
        rotation: the largest angle in degrees, 0 for no rotation, at most 180.
        fill: one value, or one per channel.

    Returns:
        As `x`, of the same type.

    Raises:
        ValueError: where an argument is not as said, or `fill` cannot be held by the type of `x`.

    Source: Dohare et al. 2024, "Class-incremental CIFAR-100", whose code uses torchvision's `RandomHorizontalFlip`,
    `RandomCrop(padding_mode="reflect")` and `RandomRotation`. Positions are those of `rotated_from`.
    """
    _check(x, flip, crop_padding, rotation)
    value = _fill(fill, x.shape[-1], x.dtype)
    draws = drawn(key, x.shape[0], flip=flip, crop_padding=crop_padding, rotation=rotation)
    return moved(x, draws, crop_padding=crop_padding, rotate=rotation > 0, fill=value)


def drawn(key: jax.Array, batch: int, *, flip: bool, crop_padding: int, rotation: float) -> Draws:
    """The chances of `batch` pictures; those of picture `i` come from `fold_in(key, i)`."""

    def one(number):
        flipping, cropping, rotating = jax.random.split(jax.random.fold_in(key, number), 3)
        flipped = jax.random.bernoulli(flipping) if flip else jnp.zeros((), bool)
        top, left = jax.random.randint(cropping, (2,), 0, 2 * crop_padding + 1, jnp.int32)
        angle = jax.random.uniform(rotating, (), jnp.float32, 0, rotation) if rotation else jnp.zeros((), jnp.float32)
        return Draws(flipped, top, left, angle)

    return jax.vmap(one)(jnp.arange(batch))


def moved(x: jax.Array | np.ndarray, draws: Draws, *, crop_padding: int, rotate: bool, fill: jax.Array) -> jax.Array:
    """The pictures `x` flipped, cropped and rotated as `draws` says: each pixel is read once, where it came from."""
    height, width = x.shape[1:3]
    row, column = np.divmod(np.arange(height * width, dtype=np.int32), width)
    row, column, inside = jnp.asarray(row)[None], jnp.asarray(column)[None], None
    if rotate:
        row, column = rotated_from(row, column, draws.angle[:, None], height, width)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row = _reflected(row + draws.top[:, None] - crop_padding, height)
    column = _reflected(column + draws.left[:, None] - crop_padding, width)
    column = jnp.where(draws.flip[:, None], width - 1 - column, column)
    return _taken(jnp.asarray(x), row * width + column, inside, fill)


def rotated_from(
    row: jax.Array, column: jax.Array, angle: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Which pixel, int32, each pixel of a picture rotated by `angle` degrees was; outside the picture where none.

    About the centre of the picture, counter-clockwise for positive angles, with rows counted downwards:
    `column' = cos column - sin row`, `row' = sin column + cos row`, counted from the centre between the pixels, then
    the nearest pixel (halfway: the higher one). This is what torchvision does for arrays, but for positions within
    float32's rounding of halfway between two pixels.

    Sine and cosine are rounded to multiples of 2^-23 (for 32 by 32; coarser for pictures above that) and all else is
    integer arithmetic, so that an angle gives the same pixels whatever it is compiled together with.
    """
    bits = min(24, 29 - math.ceil(math.log2(height + width)))
    radians = jnp.deg2rad(angle)
    cos, sin = (jnp.round(f(radians) * 2**bits).astype(jnp.int32) for f in (jnp.cos, jnp.sin))
    # Twice the distance from the centre is a whole number, for even and for odd sizes.
    y, x = 2 * row - (height - 1), 2 * column - (width - 1)

    def nearest(doubled, size):
        return (doubled + size * 2**bits) >> (bits + 1)

    return nearest(sin * x + cos * y, height), nearest(cos * x - sin * y, width)


def _reflected(position: jax.Array, size: int) -> jax.Array:
    """Positions up to `size - 1` outside of `0 ... size - 1`, mirrored at the first and the last; else within."""
    position = (size - 1) - jnp.abs((size - 1) - jnp.abs(position))
    return jnp.clip(position, 0, size - 1)


def _taken(x: jax.Array, index: jax.Array, inside: jax.Array | None, fill: jax.Array) -> jax.Array:
    """Pixel `index` of each picture, `fill` where not `inside`."""
    batch, height, width, channels = x.shape
    pixels = x.reshape(batch, height * width, channels)
    index = jnp.broadcast_to(index, (batch, height * width))
    pixels = jax.vmap(lambda p, i: p.at[i].get(mode="promise_in_bounds"))(pixels, index)
    if inside is not None:
        pixels = jnp.where(inside[..., None], pixels, fill)
    return pixels.reshape(x.shape)


def _check(x: jax.Array | np.ndarray, flip: bool, crop_padding: int, rotation: float) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x: got shape {x.shape}, allowed is [batch, height, width, channels]")
    if flip not in (True, False):
        raise ValueError(f"flip: got {flip!r}, allowed are True and False")
    whole = isinstance(crop_padding, int) and not isinstance(crop_padding, bool)
    if not whole or not 0 <= crop_padding < min(x.shape[1:3]):
        raise ValueError(
            f"crop_padding: got {crop_padding!r}, pictures of {x.shape[1]} by {x.shape[2]} allow integers "
            f"from 0 to {min(x.shape[1:3]) - 1}"
        )
    if isinstance(rotation, bool) or not isinstance(rotation, (int, float)) or not 0 <= rotation <= 180:
        raise ValueError(f"rotation: got {rotation!r}, allowed are degrees from 0 to 180")


def _fill(fill, channels: int, dtype) -> jax.Array:
    values = np.asarray(fill)
    if values.shape not in ((), (channels,)):
        raise ValueError(f"fill: got shape {values.shape}, allowed are one value and {channels}, one per channel")
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        if not np.all((values == np.round(values)) & (values >= limits.min) & (values <= limits.max)):
            raise ValueError(f"fill: got {fill!r}, {dtype} pictures allow integers from {limits.min} to {limits.max}")
    return jnp.broadcast_to(jnp.asarray(values, dtype), (channels,))
