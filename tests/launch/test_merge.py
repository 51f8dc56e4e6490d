"""`launch.merge`: blocks of lanes run apart come out as the run in one, and the merged run goes on; what cannot be
joined is said, and nothing is overwritten."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from launch import run
from launch.config.experiment import Experiment
from launch.engine.keeping import Keeping
from launch.engine.resume import Block, parse_block
from launch.errors import InputError
from launch.merge import merge
from launch.storage.run_folder import read_run

CBP = "continual_backprop(replacement_rate=0.05,maturity_threshold=10,history=40)"
EXPERIMENT = Experiment(
    "slowly_changing_regression(change_every=100)", f"cbp={CBP}", tuple(range(5)), steps=300, bin=100, lanes_per_batch=2
)


def launched(workdir, block=None, **changes):
    run(dataclasses.replace(EXPERIMENT, **changes), workdir, workers=1, block=block)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    launched(folder / "one")
    for index in range(2):
        launched(folder / f"block{index}", Block(index, 2))
    merge(folder / "merged", [folder / "block1", folder / "block0"])
    return folder


def same_bytes(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype, name
        assert values.tobytes() == other[name].tobytes(), name


def test_blocks_come_out_as_the_run_in_one(folder):
    one, merged = (read_run(folder / name / "cbp") for name in ("one", "merged"))
    same_bytes(one.metrics, merged.metrics)
    assert one.lives is not None and merged.lives is not None and len(one.lives["step"]) > 20
    same_bytes(one.lives, merged.lives)
    own = ("wall_seconds", "folder")
    assert {k: v for k, v in one.meta.items() if k not in own} == {k: v for k, v in merged.meta.items() if k not in own}
    assert merged.meta["finished"]


def test_a_block_holds_every_second_unit(folder):
    blocks = [read_run(folder / f"block{i}" / "cbp") for i in range(2)]
    assert [block.seeds.tolist() for block in blocks] == [[0, 1, 4], [2, 3]]


def test_the_merged_run_goes_on_as_the_run_in_one(folder, tmp_path):
    longer = {}
    for name in ("one", "merged"):
        shutil.copytree(folder / name, tmp_path / name)
        launched(tmp_path / name, steps=500)
        longer[name] = read_run(tmp_path / name / "cbp").metrics
    same_bytes(longer["one"], longer["merged"])


def test_a_block_run_again_has_nothing_to_do_and_is_not_another_one(folder):
    launched(folder / "block0", Block(0, 2))
    with pytest.raises(InputError, match=r"block 0/2 there, 1/2 asked"):
        launched(folder / "block0", Block(1, 2))
    with pytest.raises(InputError, match=r"block 0/2 there, all asked"):
        launched(folder / "block0")
    with pytest.raises(InputError, match=r"--block=3/4: cbp has only 3 units of work"):
        launched(folder / "block3", Block(3, 4))
    assert not (folder / "block3").exists()


def test_runs_of_other_seeds_are_joined(folder, tmp_path):
    launched(tmp_path / "low", seeds=(0, 1))
    launched(tmp_path / "high", seeds=(2, 3))
    merge(tmp_path / "all", [tmp_path / "low", tmp_path / "high"])
    merged, one = read_run(tmp_path / "all" / "cbp"), read_run(folder / "one" / "cbp")
    same_bytes(merged.metrics, {name: values[:4] for name, values in one.metrics.items()})
    launched(tmp_path / "all", seeds=(0, 1, 2, 3))


def refused(text, *arguments):
    with pytest.raises(InputError, match=text) as error:
        merge(*arguments)
    assert "\n" not in str(error.value)


def test_nothing_is_overwritten(folder):
    before = (folder / "one" / "cbp" / "metrics.npz").read_bytes()
    refused(r"one: is there already", folder / "one", [folder / "block0", folder / "block1"])
    assert (folder / "one" / "cbp" / "metrics.npz").read_bytes() == before


def test_missing_lanes_are_named(folder, tmp_path):
    refused(r"1 of 3 units of work are missing, those of --block=1/2", tmp_path / "x", [folder / "block0"] * 2)
    refused(r"1 folders to join", tmp_path / "x", [folder / "block0"])
    assert not (tmp_path / "x").exists()


def test_a_lane_with_other_numbers_is_refused(folder, tmp_path):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder / "block0", spoiled)
    with np.load(spoiled / "cbp" / "metrics.npz") as file:
        arrays = dict(file)
    arrays["squared_error"][1, 2] += 1e-9
    np.savez(spoiled / "cbp" / "metrics.npz", **arrays)
    parts = [folder / "block0", folder / "block1", spoiled]
    refused(r"hold the same lanes \(seeds 0, 1\) with different numbers in squared_error", tmp_path / "x", parts)
    merge(tmp_path / "twice", [folder / "block0", folder / "block1", folder / "block0"])


def test_lanes_cut_in_another_way_are_refused(folder, tmp_path):
    launched(tmp_path / "alone", seeds=(3,))
    parts = [folder / "one", tmp_path / "alone"]
    refused(r"alone/cbp: seed 3 has been run in two units of work", tmp_path / "x", parts)


def test_other_settings_and_runs_on_their_way_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "block1", other)
    path = other / "cbp" / "run.json"
    meta = json.loads(path.read_text())
    meta["settings"]["bin"] = 50
    path.write_text(json.dumps(meta))
    refused(r"runs of different settings: bin 100 and 50", tmp_path / "x", [folder / "block0", other])
    (other / "cbp" / "DONE").unlink()
    refused(r"other/cbp: not over yet", tmp_path / "x", [folder / "block0", other])


def test_another_commit_is_told(folder, tmp_path):
    other, told = tmp_path / "other", []
    shutil.copytree(folder / "block1", other)
    path = other / "cbp" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "abc"}))
    merge(tmp_path / "x", [folder / "block0", other], told.append)
    assert len(told) == 1 and "commit abc" in told[0]


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/0", "/", "0/2/4"])
def test_what_is_no_block(text):
    with pytest.raises(InputError, match=r"--block: '.*' is not I/N"):
        parse_block(text)


def test_blocks_without_checkpoints_are_joined_too(tmp_path):
    for index in range(2):
        run(EXPERIMENT, tmp_path / str(index), workers=1, block=Block(index, 2), keeping=Keeping(keep=0))
    merge(tmp_path / "merged", [tmp_path / "0", tmp_path / "1"])
    assert read_run(tmp_path / "merged" / "cbp").seeds.tolist() == [0, 1, 2, 3, 4]
