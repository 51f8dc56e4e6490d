"""What `make test` asks of some pairs of a task and a method, asked of the others."""

import pytest

from tests.launch import tiny
from tests.launch.engine.test_resume import (
    CHUNKS,
    EVENTFUL,
    chunk_of,
    stopped_and_gone_on_is_the_run_never_stopped,
)
from tests.launch.test_lowering import is_a_program_for_gpus_and_tpus

OTHERS = [pair for pair in tiny.PAIRS if pair not in tiny.QUICK]
EVENTFUL_PAIRS = [(task, method) for task, method in tiny.PAIRS if task in tiny.LEAD and method in EVENTFUL]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Few small pictures, as the image tasks read them."""
    folder = tmp_path_factory.mktemp("images")
    tiny.write_pictures(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.mark.parametrize(("task", "method"), dict.fromkeys([*OTHERS, *EVENTFUL_PAIRS]))
def test_stopped_and_gone_on_is_the_run_never_stopped(task, method, images, tmp_path, monkeypatch):
    """Methods that replace units at three chunk lengths, others at one."""
    chunks = CHUNKS if (task, method) in EVENTFUL_PAIRS else chunk_of(method)
    stopped_and_gone_on_is_the_run_never_stopped(task, method, images, tmp_path, monkeypatch, chunks)


@pytest.mark.parametrize(("task", "method"), OTHERS)
def test_a_chunk_is_a_program_for_gpus_and_tpus(task, method, images):
    is_a_program_for_gpus_and_tpus(task, method, images)
