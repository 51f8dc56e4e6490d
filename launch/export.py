"""Write run folders as one long table: label, method, seed, every hyperparameter, step, metric, value.

python -m launch.export DIR --format=csv|parquet [--out=FILE, or - for csv on standard output]
"""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.storage.durable import replacing
from launch.storage.run_folder import Run, read_runs

FORMATS = ("csv", "parquet")
FIRST, LAST = ("label", "method", "seed"), ("step", "metric", "value")


def columns(runs: Mapping[str, Run]) -> list[str]:
    """The table's columns; a hyperparameter that a lane does not have is left empty in its rows."""
    hypers = dict.fromkeys(name for run in runs.values() for lane in run.lanes for name in lane["hyper"])
    return [*FIRST, *(_hyper_column(name) for name in hypers), *LAST]


def _hyper_column(name: str) -> str:
    return f"hyper_{name}" if name in FIRST + LAST else name


def blocks(runs: Mapping[str, Run]) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Per label, lane and metric: the columns that are the same in its rows, then `step` and `value` of the rows.

    A bin in which the metric was not measured has no row.
    """
    for label, run in runs.items():
        for index, lane in enumerate(run.lanes):
            own = {"label": label, "method": lane["method"], "seed": lane["seed"]}
            own |= {_hyper_column(name): value for name, value in lane["hyper"].items()}
            for metric, values in run.metrics.items():
                measured = ~np.isnan(values[index])
                yield own | {"metric": metric}, run.step[measured], values[index][measured]


def export(directory: Path | str, format: str = "csv", out: Path | str | None = None) -> Path | None:
    """Write every run in `directory` as a table to `out`, by default `metrics.<format>` in it; returns the path.

    `out="-"` writes csv to standard output. Raises InputError.
    """
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    runs = read_runs(directory)
    if str(out) == "-":
        if format != "csv":
            raise InputError(f"--out: - (standard output) takes csv only, --format={format}")
        _write_csv(runs, sys.stdout)
        return None
    path = Path(out) if out is not None else Path(directory) / f"metrics.{format}"
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out: no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder")
    write = _csv_file if format == "csv" else _parquet_writer()
    try:
        with replacing(path) as file:
            write(runs, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _csv_file(runs: Mapping[str, Run], file: Any) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    _write_csv(runs, text)
    text.flush()
    text.detach()


def _write_csv(runs: Mapping[str, Run], file: Any) -> None:
    names = columns(runs)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for own, steps, values in blocks(runs):
        row = [own.get(name, "") for name in names]
        before, metric = row[: -len(LAST)], own["metric"]
        pairs = zip(steps.tolist(), values.tolist(), strict=True)
        writer.writerows([*before, step, metric, value] for step, value in pairs)


def _parquet_writer() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("--format=parquet: needs the package pyarrow; pip install pyarrow") from error
    kinds = {"label": pyarrow.string(), "method": pyarrow.string(), "metric": pyarrow.string()}
    kinds |= {"seed": pyarrow.int64(), "step": pyarrow.int64()}

    def write(runs: Mapping[str, Run], file: Any) -> None:
        names = columns(runs)
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in names])
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for group in _groups(runs):
                own, steps, values = zip(*group, strict=True)
                index = pyarrow.array(np.repeat(np.arange(len(own)), [len(each) for each in steps]))
                data: dict[str, Any] = {"step": np.concatenate(steps), "value": np.concatenate(values)}
                for name in (each for each in names if each not in data):
                    data[name] = pyarrow.array([each.get(name) for each in own], schema.field(name).type).take(index)
                writer.write_table(pyarrow.table([pyarrow.array(data[name]) for name in names], schema=schema))

    return write


def _groups(runs: Mapping[str, Run]) -> Iterator[list[tuple[dict[str, Any], np.ndarray, np.ndarray]]]:
    """Blocks by label: one row group of the file each."""
    for label, run in runs.items():
        group = list(blocks({label: run}))
        if group:
            yield group


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `export` brings none."""
    flags.DEFINE_enum("format", "csv", FORMATS, "Kind of file.", flag_values=values)
    flags.DEFINE_string(
        "out", None, "Default: metrics.<format> in the folder; - is standard output.", flag_values=values
    )


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: writes the table and prints where."""
    if len(arguments) != 1:
        raise InputError(f"launch.export: {len(arguments)} folders given, one is needed: python -m launch.export DIR")
    path = export(arguments[0], values.format, values.out)
    if path is not None:
        print(path)


if __name__ == "__main__":
    define_flags()
    run_cli(main)
