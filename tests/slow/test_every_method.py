"""What `make test` asks of some methods, asked of the others."""

import pytest

from tests.launch import tiny
from tests.launch.config.test_registry import (
    WITH_OPTIMIZERS,
    a_sweep_over_every_number_compiles_once_and_all_learn,
    stays_finite_with_an_optimizer,
)

OTHERS = [name for name in tiny.METHOD_NAMES if name not in tiny.IN_SHORT]
PAIRS = [(name, optimizer) for name in tiny.METHOD_NAMES for optimizer in ("momentum", "muon")]


@pytest.mark.parametrize("name", OTHERS)
def test_a_sweep_over_every_number_compiles_once_and_all_learn(name, monkeypatch, tmp_path):
    a_sweep_over_every_number_compiles_once_and_all_learn(name, monkeypatch, tmp_path)


@pytest.mark.parametrize(("name", "optimizer"), [pair for pair in PAIRS if pair not in WITH_OPTIMIZERS])
def test_every_method_stays_finite_with_every_optimizer(name, optimizer):
    stays_finite_with_an_optimizer(name, optimizer)
