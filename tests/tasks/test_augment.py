"""Augmentation on the device: the law of its chances, and each step against numpy and Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks import augment
from tasks.augment import Draws

augmented = jax.jit(augment.augmented, static_argnames=("flip", "crop_padding", "rotation", "fill"))
drawn = jax.jit(augment.drawn, static_argnums=1, static_argnames=("flip", "crop_padding", "rotation"))
moved = jax.jit(augment.moved, static_argnames=("crop_padding", "rotate"))

STEPS = {"flip": True, "crop_padding": 4, "rotation": 15.0}
NO_FILL = jnp.zeros(3)


@functools.cache
def many():
    return jax.tree.map(np.asarray, drawn(jax.random.key(3), 3000, **STEPS))


def pictures(batch=6, height=32, width=32, channels=3):
    """Every value is found once, and none is 0."""
    return 1 + np.arange(batch * height * width * channels, dtype=np.float32).reshape(batch, height, width, channels)


def draws_of(batch, *, flip=False, top=4, left=4, angle=0.0):
    return Draws(*(jnp.broadcast_to(jnp.asarray(value), (batch,)) for value in (flip, top, left, angle)))


def source(height, width, degrees):
    """Row and column, float64, that every pixel of a picture rotated counter-clockwise comes from."""
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    cos, sin = np.cos(np.radians(float(degrees))), np.sin(np.radians(float(degrees)))
    return np.stack([sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2])


def rotated(picture, degrees, fill=0.0):
    """The rotation by numpy, and where a position lies so near to a tie that rounding decides."""
    height, width = picture.shape[:2]
    position = source(height, width, degrees)
    row, column = np.floor(position + 0.5).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    result = np.full_like(picture, fill)
    result[inside] = picture[row[inside], column[inside]]
    return result, (np.abs(position - np.floor(position) - 0.5) < 2e-5).any(0)


@pytest.mark.parametrize("size", [(32, 32), (9, 14)])
def test_one_map_is_the_three_steps_one_after_the_other(size):
    x = pictures(40, *size)
    draws = drawn(jax.random.key(0), len(x), **STEPS)
    ours = np.asarray(moved(x, draws, crop_padding=4, rotate=True, fill=NO_FILL))
    ties = 0
    for i, (flip, top, left, angle) in enumerate(zip(*map(np.asarray, draws), strict=True)):
        step = x[i, :, ::-1] if flip else x[i]
        step = np.pad(step, ((4, 4), (4, 4), (0, 0)), mode="reflect")[top : top + size[0], left : left + size[1]]
        step, tie = rotated(step, angle)
        np.testing.assert_array_equal(ours[i][~tie], step[~tie])
        ties += tie.sum()
    assert ties <= 10
    assert (ours == 0).any() and len(np.unique(np.asarray(draws.flip))) == 2


def test_steps_chained_are_the_one_map_bit_for_bit():
    x = pictures(20)
    all_draws = drawn(jax.random.key(1), len(x), **STEPS)
    still = draws_of(len(x))
    step = moved(x, still._replace(flip=all_draws.flip), crop_padding=4, rotate=False, fill=NO_FILL)
    step = moved(step, all_draws._replace(flip=still.flip), crop_padding=4, rotate=False, fill=NO_FILL)
    step = moved(step, still._replace(angle=all_draws.angle), crop_padding=4, rotate=True, fill=NO_FILL)
    np.testing.assert_array_equal(step, moved(x, all_draws, crop_padding=4, rotate=True, fill=NO_FILL))
    np.testing.assert_array_equal(step, augmented(jax.random.key(1), x))


def test_a_quarter_turn_is_counter_clockwise():
    x = pictures(2, 5, 5)
    turned = moved(x, draws_of(2, angle=90.0), crop_padding=4, rotate=True, fill=NO_FILL)
    np.testing.assert_array_equal(turned, np.rot90(x, axes=(1, 2)))


@pytest.mark.parametrize("size", [(32, 32), (33, 20)])
def test_rotation_agrees_with_pillow(size):
    image = pytest.importorskip("PIL.Image")
    x = pictures(1, *size, 1).astype(np.int32)
    for degrees in (0.0, 0.7, 3.3, 7.9, 12.4, 15.0, 61.0):
        theirs = np.asarray(image.fromarray(x[0, ..., 0]).rotate(degrees, image.Resampling.NEAREST))
        ours = moved(x, draws_of(1, angle=degrees), crop_padding=4, rotate=True, fill=jnp.zeros(1, jnp.int32))
        position = source(*size, degrees)
        # Pillow counts positions in 65536ths of a pixel, and one rounding is added up along a row.
        sure = (np.abs(position - np.floor(position) - 0.5) > 2e-3).all(0)
        assert sure.mean() > 0.98
        np.testing.assert_array_equal(np.asarray(ours)[0, ..., 0][sure], theirs[sure])


def test_half_the_pictures_are_flipped():
    flip = many().flip
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(flip))


@pytest.mark.parametrize("axis", ["top", "left"])
def test_every_place_of_the_crop_is_equally_likely(axis):
    counts = np.bincount(getattr(many(), axis))
    assert len(counts) == 9
    expected = len(many().top) / 9
    # 8 degrees of freedom: exceeded once in 10,000.
    assert ((counts - expected) ** 2 / expected).sum() < 31.8


def test_angles_are_uniform_and_one_sided():
    angle = np.sort(many().angle)
    assert angle[0] >= 0 and angle[-1] <= 15
    distance = np.abs(angle / 15 - np.arange(len(angle)) / len(angle)).max()
    # Kolmogorov's bound: exceeded once in 10,000.
    assert distance < 2.23 / np.sqrt(len(angle))


def test_chances_are_independent_of_one_another():
    correlation = np.corrcoef(np.stack([np.asarray(values, float) for values in many()]))
    assert np.abs(correlation - np.eye(4)).max() < 4.5 / np.sqrt(len(many().flip))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16", "int32"])
def test_without_any_step_nothing_changes(dtype):
    x = jnp.asarray(pictures(3, 6, 7) % 200).astype(dtype)
    same = augmented(jax.random.key(0), x, flip=False, crop_padding=0, rotation=0)
    assert same.dtype == x.dtype
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(moved(x, draws_of(3), crop_padding=4, rotate=True, fill=jnp.zeros(3, dtype)), x)


def test_each_step_alone():
    x = pictures(30)
    key = jax.random.key(2)
    flipped = np.asarray(augmented(key, x, crop_padding=0, rotation=0))
    swapped = np.array([not np.array_equal(a, b) for a, b in zip(flipped, x, strict=True)])
    assert 0 < swapped.sum() < 30
    np.testing.assert_array_equal(flipped[swapped], x[swapped][:, :, ::-1])
    cropped = np.asarray(augmented(key, x, flip=False, rotation=0))
    for i in range(30):
        padded = np.pad(x[i], ((4, 4), (4, 4), (0, 0)), mode="reflect")
        places = np.argwhere(
            [[np.array_equal(cropped[i], padded[t : t + 32, s : s + 32]) for s in range(9)] for t in range(9)]
        )
        assert len(places) == 1
    turned = np.asarray(augmented(key, x, flip=False, crop_padding=0))
    np.testing.assert_array_equal(turned[:, 15:17, 15:17], x[:, 15:17, 15:17])
    assert (turned == 0).any()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_type_is_kept_and_fill_is_per_channel(dtype):
    x = jnp.full((8, 16, 16, 3), 200, dtype)
    y = np.asarray(augmented(jax.random.key(0), x, fill=(1, 2, 3)).astype(jnp.float32))
    assert augmented(jax.random.key(0), x).dtype == x.dtype
    filled = (y != 200).any(-1)
    assert filled.any() and not filled.all()
    np.testing.assert_array_equal(y[filled], np.broadcast_to([1, 2, 3], y[filled].shape))


def test_a_picture_depends_on_the_key_and_its_place_only():
    x = pictures(12)
    key = jax.random.key(5)
    whole = augmented(key, x)
    np.testing.assert_array_equal(whole, augmented(key, x))
    np.testing.assert_array_equal(whole[:5], augmented(key, x[:5]))
    others = np.concatenate([x[:1], 2 * x[1:]])
    np.testing.assert_array_equal(whole[0], augmented(key, others)[0])
    assert not np.array_equal(whole, augmented(jax.random.key(6), x))


def test_pictures_of_a_batch_go_different_ways():
    y = np.asarray(augmented(jax.random.key(0), np.broadcast_to(pictures(1), (10, 32, 32, 3))))
    assert len({picture.tobytes() for picture in y}) == 10


def test_compiled_scanned_and_mapped_are_the_same():
    keys = jax.random.split(jax.random.key(7), 4)
    x = np.stack([pictures(5, 12, 12) + 1000 * lane for lane in range(4)])
    loop = np.stack([augment.augmented(key, one) for key, one in zip(keys, x, strict=True)])
    np.testing.assert_array_equal(jax.vmap(augmented)(keys, x), loop)
    scanned = jax.jit(lambda keys, x: jax.lax.scan(lambda c, kx: (c, augmented(*kx)), 0, (keys, x))[1])
    np.testing.assert_array_equal(scanned(keys, jnp.asarray(x)), loop)


def test_pictures_shared_by_all_lanes():
    keys = jax.random.split(jax.random.key(7), 3)
    x = pictures(4, 10, 10)
    mapped = jax.vmap(augmented, in_axes=(0, None))(keys, x)
    np.testing.assert_array_equal(mapped, np.stack([augmented(key, x) for key in keys]))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"x": np.zeros((32, 32, 3))}, r"x: got shape \(32, 32, 3\), allowed is \[batch, height, width, channels\]"),
        ({"x": np.zeros((2, 0, 8, 3))}, r"x: got shape \(2, 0, 8, 3\)"),
        ({"flip": 0.5}, "flip: got 0.5, allowed are True and False"),
        ({"crop_padding": -1}, "crop_padding: got -1, pictures of 8 by 9 allow integers from 0 to 7"),
        ({"crop_padding": 8}, "crop_padding: got 8, pictures of 8 by 9 allow integers from 0 to 7"),
        ({"crop_padding": 1.0}, "crop_padding: got 1.0,"),
        ({"crop_padding": True}, "crop_padding: got True,"),
        ({"rotation": -5}, "rotation: got -5, allowed are degrees from 0 to 180"),
        ({"rotation": float("nan")}, "rotation: got nan,"),
        ({"rotation": (0, 15)}, r"rotation: got \(0, 15\),"),
        ({"fill": (0, 0)}, r"fill: got shape \(2,\), allowed are one value and 3, one per channel"),
        ({"fill": 129.3}, "fill: got 129.3, uint8 pictures allow integers from 0 to 255"),
        ({"fill": 256}, "fill: got 256, uint8 pictures allow integers from 0 to 255"),
        ({"fill": (0, -1, 0)}, r"fill: got \(0, -1, 0\), uint8 pictures"),
    ],
)
def test_what_does_not_fit_is_refused(change, line):
    arguments = {"x": np.zeros((2, 8, 9, 3), np.uint8)} | change
    with pytest.raises(ValueError, match=f"^{line}") as caught:
        augment.augmented(jax.random.key(0), **arguments)
    assert "\n" not in str(caught.value)
