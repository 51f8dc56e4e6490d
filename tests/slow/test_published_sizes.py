"""The zoo in its published sizes, from shapes alone: parameters as published, and the units that are counted."""

import pytest

from tests.zoo.test_zoo import ZOO, build, traced


@pytest.mark.parametrize("name", ZOO)
def test_units_of_the_published_size_are_found(name):
    network = build(name, full=True)
    assert ZOO[name].parameters in (None, network.size)
    traced(name, network)
