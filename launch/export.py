"""Write run folders as one long table: whose lane, seed, hyperparameters, task, step, metric, value.

python -m launch.export DIR... --format=csv|parquet [--out=FILE, or - for csv on standard output]

The columns are those of `launch.analysis.long_table`, without rows of bins in which nothing was measured.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from launch.analysis.curves import Curve, curves, read
from launch.analysis.long_table import OWN, hyper_column, long_table
from launch.cli import run_cli
from launch.errors import InputError, unknown
from launch.storage.durable import replacing

FORMATS = ("csv", "parquet")
WORDS = ("label", "method", "setting", "metric")


def export(
    directories: Sequence[Path | str] | Path | str, format: str = "csv", out: Path | str | None = None
) -> Path | None:
    """Write every run in `directories` as a table to `out`, by default `metrics.<format>` in the first; its path.

    `out="-"` writes csv to standard output. Raises InputError.
    """
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    found = curves(read(directories, "export"))
    if str(out) == "-":
        if format != "csv":
            raise InputError(f"--out: - (standard output) takes csv only, --format={format}")
        _write_csv(found, sys.stdout)
        return None
    first = directories if isinstance(directories, (str, Path)) else directories[0]
    path = Path(out) if out is not None else Path(first) / f"metrics.{format}"
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out: no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder")
    write = _csv_file if format == "csv" else _parquet_writer()
    try:
        with replacing(path) as file:
            write(found, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def columns(found: Sequence[Curve]) -> list[str]:
    """The table's columns; a hyperparameter that a method does not have is left empty in its rows."""
    hypers = dict.fromkeys(hyper_column(name) for curve in found for name in curve.hyper)
    first = OWN.index("task")
    return [*OWN[:first], *hypers, *OWN[first:]]


def _parts(found: Sequence[Curve]) -> Iterator[pd.DataFrame]:
    """The table curve by curve, so that a long one needs no memory for the whole."""
    names = columns(found)
    for curve in found:
        yield long_table([curve]).dropna(subset="value").reindex(columns=names)


def _write_csv(found: Sequence[Curve], file: Any) -> None:
    for place, part in enumerate(_parts(found)):
        part.to_csv(file, index=False, header=place == 0, lineterminator="\n")


def _csv_file(found: Sequence[Curve], file: Any) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    _write_csv(found, text)
    text.flush()
    text.detach()


def _parquet_writer() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("--format=parquet: needs the package pyarrow; pip install pyarrow") from error
    kinds = {name: pyarrow.string() for name in WORDS} | {"diverged": pyarrow.bool_()}
    kinds |= {name: pyarrow.int64() for name in ("seed", "lane", "task", "step", "steps")}

    def write(found: Sequence[Curve], file: Any) -> None:
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns(found)])
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for part in _parts(found):
                part = part.astype(dict.fromkeys(WORDS, object))
                writer.write_table(pyarrow.Table.from_pandas(part, schema, preserve_index=False))

    return write


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The command's flags; defined when it runs, so that importing `export` brings none."""
    flags.DEFINE_enum("format", "csv", FORMATS, "Kind of file.", flag_values=values)
    flags.DEFINE_string(
        "out", None, "Default: metrics.<format> in the folder; - is standard output.", flag_values=values
    )


def main(arguments: list[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """The command: writes the table and prints where."""
    path = export(arguments, values.format, values.out)
    if path is not None:
        print(path)


if __name__ == "__main__":
    define_flags()
    run_cli(main)
