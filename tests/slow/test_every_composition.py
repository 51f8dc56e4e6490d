"""Every method around every other, shapes and types alone; about 0.1 s of CPU time a pair."""

import pytest

from tests.plastic_jax.test_composition import NAMES, check_pair


@pytest.mark.parametrize("inner", NAMES)
@pytest.mark.parametrize("outer", NAMES)
def test_a_method_around_another_keeps_all_types(outer, inner):
    check_pair(outer, inner)
