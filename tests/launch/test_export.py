"""The long table holds every measured value once, in csv and in parquet."""

import csv
import io
import sys

import numpy as np
import pytest
from absl import flags

from launch import export as command
from launch.errors import InputError
from launch.export import export
from launch.storage.run_folder import write_run


def write(folder, label, values, hypers=({},), seeds=(0, 1, 2), metric="squared_error", **about):
    """A run with `values` [lane, bin], lanes being hypers x seeds, in bins of 10 steps."""
    values = np.asarray(values, float)
    lanes = [{"method": label, "seed": s, "hyper": dict(h)} for h in hypers for s in seeds]
    settings = {"steps": 10 * values.shape[1]} | about.pop("settings", {})
    meta = {"label": label, "method": label, "task": "toy", "settings": settings, "lanes": lanes, **about}
    bins = values.shape[1]
    write_run(folder / label, meta, 10 * np.arange(1, bins + 1), np.full(bins, 10), {metric: values})


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "a", [[0.1, np.nan], [1 / 3, 1e-30], [2.0, 3.0]], hypers=[{"step_size": 0.01}])
    write(tmp_path, "b", [[5.0, 6.0]], hypers=[{"rate": 1e-4, "metric": 2.0}], seeds=(7,), metric="loss", diverged=[0])
    return tmp_path


EXPECTED = [
    ("a", "a", None, 0, 0, 0.01, None, None, 0, 10, 10, "squared_error", 0.1, False),
    ("a", "a", None, 1, 1, 0.01, None, None, 0, 10, 10, "squared_error", 1 / 3, False),
    ("a", "a", None, 1, 1, 0.01, None, None, 0, 20, 10, "squared_error", 1e-30, False),
    ("a", "a", None, 2, 2, 0.01, None, None, 0, 10, 10, "squared_error", 2.0, False),
    ("a", "a", None, 2, 2, 0.01, None, None, 0, 20, 10, "squared_error", 3.0, False),
    ("b", "b", None, 7, 0, None, 1e-4, 2.0, 0, 10, 10, "loss", 5.0, True),
    ("b", "b", None, 7, 0, None, 1e-4, 2.0, 0, 20, 10, "loss", 6.0, True),
]
COLUMNS = [
    "label", "method", "setting", "seed", "lane", "step_size", "rate", "hyper_metric", "task", "step", "steps",
    "metric", "value", "diverged",
]  # fmt: skip


def rows_of(text):
    head, *rows = csv.reader(io.StringIO(text))
    assert head == COLUMNS
    kinds = (str, str, str, int, int, float, float, float, int, int, int, str, float, lambda cell: cell == "True")
    return [tuple(kind(cell) if cell else None for kind, cell in zip(kinds, row, strict=True)) for row in rows]


def test_csv_holds_every_measured_value_to_the_last_bit(folder):
    path = export(folder)
    assert path == folder / "metrics.csv"
    assert rows_of(path.read_text()) == EXPECTED


def test_parquet_holds_the_same(folder):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export(folder, "parquet", folder / "table.parquet"))
    assert table.column_names == COLUMNS
    rows = [{name: None if value == "" else value for name, value in row.items()} for row in table.to_pylist()]
    assert [tuple(row.values()) for row in rows] == EXPECTED


def test_parquet_without_its_package_is_one_line_and_no_file(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        export(folder, "parquet")
    assert not list(folder.glob("*.parquet"))


def test_a_single_run_and_standard_output(folder, capsys):
    assert export(folder / "b", out="-") is None
    assert capsys.readouterr().out.count("\n") == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": "xlsx"}, "--format: unknown 'xlsx'"),
        ({"format": "parquet", "out": "-"}, "takes csv only"),
        ({"out": "absent/table.csv"}, "no folder absent"),
        ({"out": "a"}, "is a folder"),
    ],
)
def test_wrong_targets(folder, monkeypatch, given, words):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=words):
        export(folder, **given)


def test_the_command(folder, capsys):
    values = flags.FlagValues()
    command.define_flags(values)
    rest = values(["export", str(folder), f"--out={folder / 'table.csv'}"])
    command.main(rest[1:], values)
    assert capsys.readouterr().out.strip() == str(folder / "table.csv")
    with pytest.raises(InputError, match="no run folder given"):
        command.main([], values)
