"""The group `peers`: a peer answers from a process of its own, in turns with our calls, or says in a line why not."""

import sys

import pytest

from launch.benchmark import benchmark
from launch.benchmarks.peers import LEAST_OVER_PEER, peer, peer_table, timed_beside
from launch.benchmarks.timing import Spread
from launch.errors import InputError

ANSWERS = """
import sys
print("noise")
print("ready", flush=True)
for n, _ in enumerate(sys.stdin):
    print(n / 4, flush=True)
"""


def test_a_peer_runs_once_for_every_call_and_takes_turns_with_ours():
    order = []
    with peer(sys.executable, "-c", ANSWERS) as theirs:
        spent = timed_beside({"ours": lambda: order.append("ours")}, lambda: order.append("peer") or theirs(), 3)
    assert order == ["ours"] + ["ours", "peer"] * 3
    assert spent["rejax"].tolist() == [0, 0.25, 0.5]
    assert (spent["ours"] >= 0).all() and spent["ours"].shape == (3,)


@pytest.mark.parametrize(
    ("python", "program", "message"),
    [
        ("/no/such/python", "", "--peer: /no/such/python cannot be run .No such file"),
        (sys.executable, "import nothing_of_that_name", "--peer: .*: ModuleNotFoundError: No module"),
        (sys.executable, "", "--peer: .*: it says nothing"),
    ],
)
def test_a_peer_that_does_not_run_is_one_line(python, program, message):
    with pytest.raises(InputError, match=message), peer(python, "-c", program):
        pass


def test_the_group_needs_a_peer():
    with pytest.raises(InputError, match="--only: peers needs --peer=PYTHON"):
        benchmark(["peers"])


def test_the_table_says_what_is_wanted():
    spreads = {"steps_per_cpu_second": Spread(6, 5, 7), "peer": Spread(5, 5, 5), "over_peer": Spread(1.2, 1, 1.4)}
    table = peer_table([{"method": method, "seeds": 1} | spreads for method in LEAST_OVER_PEER])
    assert table.rows[0] == ("backprop", "1", "6 [5, 7]", "5 [5, 5]", "1.2 [1, 1.4]", "at least 1.2")
