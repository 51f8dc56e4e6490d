"""Pictures by class on the device: what streams of them show, normalised."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)
"""As published, of the three channels; pixels are counted in [0, 1]."""


class PictureData(NamedTuple):
    """Pictures uint8 `[classes, n, height, width, channels]`; what they are normalised by, float32 `[channels]`.

    `mean` and `std` are of pixels from 0 to 255.
    """

    train: jax.Array | np.ndarray
    test: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray
    std: jax.Array | np.ndarray


def taken(pictures: jax.Array | np.ndarray, label: jax.Array, number: jax.Array, data: PictureData) -> jax.Array:
    """Picture `number` of class `label` for every two of them, `(pixel - mean) / std`, float32.

    `pictures` are those of `data.train` or `data.test`; indices beyond them are not looked for.
    """
    found = jnp.asarray(pictures).at[label, number].get(mode="promise_in_bounds")
    return (found.astype(jnp.float32) - data.mean) / data.std


def moments(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel of uint8 pictures, float32 `[channels]`, pixels from 0 to 255."""
    # How often each of the 256 values stands in a channel says all, and takes no copy of the pictures in floats.
    counts = np.zeros((pictures.shape[-1], 256))
    for of_class in pictures:
        for channel, row in enumerate(counts):
            row += np.bincount(of_class[..., channel].ravel(), minlength=256)
    shares, values = counts / counts.sum(1, keepdims=True), np.arange(256)
    mean = shares @ values
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    return mean.astype(np.float32), np.maximum(std, 1e-4).astype(np.float32)
