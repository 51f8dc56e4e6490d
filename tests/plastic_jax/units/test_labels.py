"""Label arrays: what is connected, and by which least number."""

import numpy as np
import pytest

from plastic_jax.units.labels import components


@pytest.mark.parametrize("seed", range(20))
def test_components_are_those_of_following_every_pair(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    pairs = [rng.integers(0, n, (int(rng.integers(0, 15)), 2)) for _ in range(3)]
    least = np.arange(n)
    for _ in range(n):
        for a, b in np.concatenate(pairs):
            least[[a, b]] = min(least[a], least[b])
    np.testing.assert_array_equal(components(n, pairs), least)
