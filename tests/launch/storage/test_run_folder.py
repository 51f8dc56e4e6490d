"""A run folder reads back as written, appears whole or not at all, and says in one line what is wrong with it."""

import json

import numpy as np
import pytest

from launch.errors import InputError
from launch.storage import run_folder
from launch.storage.run_folder import read_run, read_runs, write_run


def meta(label="backprop", hypers=({"step_size": 0.01},), seeds=(0, 1)):
    lanes = [{"method": "backprop", "seed": s, "hyper": dict(h)} for h in hypers for s in seeds]
    return {"label": label, "method": "backprop", "task": "toy", "settings": {"steps": 30}, "lanes": lanes}


def write(folder, bins=3, **given):
    about = meta(**given)
    values = np.arange(len(about["lanes"]) * bins, dtype=float).reshape(-1, bins)
    values[0, 1] = np.nan
    write_run(folder, about, 10 * np.arange(1, bins + 1), np.full(bins, 10), {"squared_error": values})
    return about, values


def line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_reads_back_what_was_written(tmp_path):
    about, values = write(tmp_path / "backprop")
    run = read_run(tmp_path / "backprop")
    np.testing.assert_array_equal(run.metrics["squared_error"], values)
    np.testing.assert_array_equal(run.step, [10, 20, 30])
    assert run.step.dtype == run.count.dtype == np.int64
    assert run.meta["lanes"] == about["lanes"] and run.meta["schema"] == 1 and run.meta["finished"]
    assert sorted(path.name for path in (tmp_path / "backprop").iterdir()) == ["DONE", "metrics.npz", "run.json"]


def test_a_run_that_was_read_can_be_written_again(tmp_path):
    write(tmp_path / "a")
    run = read_run(tmp_path / "a")
    write_run(tmp_path / "b", run.meta, run.step, run.count, run.metrics)
    assert (tmp_path / "a/run.json").read_bytes() == (tmp_path / "b/run.json").read_bytes()


def test_numpy_values_are_written_as_numbers(tmp_path):
    about = meta() | {"wall_seconds": np.float32(1.5), "diverged": np.array([1])}
    write_run(tmp_path / "a", about, [1], [1], {"loss": np.zeros((2, 1), np.float32)})
    run = read_run(tmp_path / "a")
    assert run.meta["wall_seconds"] == 1.5 and run.meta["diverged"] == [1]
    assert run.metrics["loss"].dtype == np.float64


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (3,)])
def test_a_metric_of_another_shape_is_refused_before_anything_is_written(tmp_path, shape):
    with pytest.raises(ValueError, match="shape"):
        write_run(tmp_path / "a", meta(), [1, 2, 3], [1, 1, 1], {"loss": np.zeros(shape)})
    assert not (tmp_path / "a").exists()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    _, values = write(tmp_path / "a")

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(run_folder.np, "savez_compressed", full)
    with pytest.raises(OSError, match="space"):
        write(tmp_path / "a")
    run = read_run(tmp_path / "a")
    np.testing.assert_array_equal(run.metrics["squared_error"], values)
    assert run.meta["finished"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["DONE", "metrics.npz", "run.json"]


def test_a_run_without_done_is_read_as_unfinished(tmp_path):
    write_run(tmp_path / "a", meta(), [1], [1], {"loss": np.zeros((2, 1))}, finished=False)
    assert read_run(tmp_path / "a").meta["finished"] is False


def test_runs_by_label_and_a_single_run(tmp_path):
    write(tmp_path / "second", label="second")
    write(tmp_path / "first", label="first")
    (tmp_path / "figure.png").touch()
    assert list(read_runs(tmp_path)) == ["first", "second"]
    assert list(read_runs(tmp_path / "second")) == ["second"]


def test_missing_folder(tmp_path):
    with pytest.raises(InputError) as error:
        read_runs(tmp_path / "absent")
    assert "absent: no such run folder" in line(error)


def test_folder_without_a_run_says_what_is_there(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "old").mkdir()
    with pytest.raises(InputError) as error:
        read_runs(tmp_path)
    assert "no run in it" in line(error) and "notes.txt, old/" in line(error)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        read_runs(tmp_path / "file")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9, -1])
def test_truncated_metrics(tmp_path, keep):
    write(tmp_path / "a")
    path = tmp_path / "a/metrics.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError) as error:
        read_run(tmp_path / "a")
    assert "metrics.npz: cannot be read, truncated or damaged" in line(error)


def test_flipped_bytes_in_the_metrics(tmp_path):
    write(tmp_path / "a")
    path = tmp_path / "a/metrics.npz"
    damaged = bytearray(path.read_bytes())
    damaged[120:140] = bytes(20)
    path.write_bytes(damaged)
    with pytest.raises(InputError) as error:
        read_run(tmp_path / "a")
    assert "metrics.npz" in line(error)


def test_pickled_metrics_are_not_loaded(tmp_path):
    write(tmp_path / "a")
    with open(tmp_path / "a/metrics.npz", "wb") as file:
        np.savez(file, step=np.array([{}], dtype=object), count=np.array([1]))
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"schema": 2}', '{"label": "a"}'])
def test_unreadable_description_or_another_schema(tmp_path, text):
    write(tmp_path / "a")
    (tmp_path / "a/run.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_runs(tmp_path)
    assert "run.json" in line(error)


def test_unknown_schema_names_both_versions(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a/run.json").write_text(json.dumps(meta() | {"schema": 7}))
    with pytest.raises(InputError, match="schema 7, this program reads schema 1"):
        read_run(tmp_path / "a")


def test_lanes_that_do_not_fit_the_metrics(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a/run.json").write_text(json.dumps(meta(seeds=(0, 1, 2)) | {"schema": 1}))
    with pytest.raises(InputError, match="3 lanes and 3 bins need"):
        read_run(tmp_path / "a")


def test_no_metrics_yet(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a/metrics.npz").unlink()
    with pytest.raises(InputError, match=r"no metrics\.npz in it; it holds DONE, run\.json"):
        read_run(tmp_path / "a")


def test_the_same_label_twice(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    with pytest.raises(InputError, match="second run with the label 'backprop'"):
        read_runs(tmp_path)


def test_settings_groups_name_only_what_differs(tmp_path):
    hypers = [{"step_size": 0.01, "rate": rate} for rate in (1e-4, 1e-5)]
    write(tmp_path / "a", hypers=hypers)
    (first, lanes), (second, others) = read_run(tmp_path / "a").settings_groups()
    assert (first, second) == ("rate=0.0001", "rate=1e-05")
    assert lanes.tolist() == [0, 1] and others.tolist() == [2, 3]


def test_one_settings_group_has_no_name(tmp_path):
    write(tmp_path / "a")
    ((name, lanes),) = read_run(tmp_path / "a").settings_groups()
    assert name == "" and lanes.tolist() == [0, 1]


def test_numbers_that_short_text_would_confuse_are_written_in_full(tmp_path):
    write(tmp_path / "a", hypers=[{"rate": 0.1}, {"rate": 0.1000000001}])
    names = [name for name, _ in read_run(tmp_path / "a").settings_groups()]
    assert names == ["rate=0.1", "rate=0.1000000001"]
