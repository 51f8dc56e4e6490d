"""Cuts full recordings to their first steps, what a replay in float64 reads: `tests/data/methods/NAME.npz`.

python tests/data/thin.py ../shared/golden/methods/l2init_a.npz [more.npz ...] [--steps=40] [--keep="f64/final/*"]
"""

import argparse
import fnmatch
from pathlib import Path

import numpy as np

DROPPED = ("f32/*", "f64/rec/*", "f64/final*", "f64/opt/*", "f64/state/*", "f64/penalty", "f64/loss_total")
ROWS = ("f64/events", "f64/binomial_step_leaf_value", "f64/margins")
"""Tables whose first column is the step."""


def thin(path: Path, steps: int, keep: list[str]) -> Path:
    """Writes the first `steps` of a recording without the keys of `DROPPED` that no pattern of `keep` names."""
    with np.load(path) as file:
        arrays = dict(file)
    length = len(arrays["x" if "x" in arrays else "s"])
    kept = {}
    for key, array in arrays.items():
        if any(fnmatch.fnmatchcase(key, p) for p in DROPPED) and not any(fnmatch.fnmatchcase(key, p) for p in keep):
            continue
        if key in ROWS:
            array = array[array[:, 0] < steps]
        elif array.ndim and len(array) == length and not key.startswith("init/"):
            array = array[:steps]
        kept[key] = array
    target = Path(__file__).parent / "methods" / path.name
    np.savez_compressed(target, **kept)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--keep", action="append", default=[], help="patterns of more keys to keep")
    options = parser.parse_args()
    for recording in options.recordings:
        target = thin(recording, options.steps, options.keep)
        print(f"{target}: {target.stat().st_size:,} bytes")
