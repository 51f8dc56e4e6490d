"""Streams whose tasks come slowly: those of all tasks, the few of `make test` aside."""

import pytest

from tests.tasks.test_gradual import QUICK_STREAMS, STREAMS, check_stream, folder  # noqa: F401


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in QUICK_STREAMS])
def test_every_example_is_of_the_new_task_or_of_the_same_step_of_the_task_before(name, folder):  # noqa: F811
    check_stream(name, folder)
