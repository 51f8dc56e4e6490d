"""How curves are told apart: one colour for a method in every figure, no two lines with the same look."""

import itertools
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.analysis.curves import Curve, baseline

INK, GREY, PALE = "#333333", "#999999", "#E6E6E6"

# Okabe and Ito's colours for the methods met most often, Tol's muted ones for every other label: all can be told
# apart with the common colour blindnesses.
_METHOD_COLOURS = {
    "backprop": "#D55E00",
    "continual_backprop": "#0072B2",
    "shrink_and_perturb": "#CC79A7",
    "weight_decay": "#009E73",
    "l2": "#009E73",
    "adam": "#E69F00",
    "redo": "#56B4E9",
    "dropout": "#999933",
    "l2_init": "#332288",
    "regrama": "#44AA99",
    "snr": "#AA4499",
    "cpr": "#661100",
    "spectral": "#AA4499",
    "parseval": "#6699CC",
    "weight_clipping": "#661100",
    "normalize_and_project": "#117733",
    "fire": "#DDAA33",
    "head_reset": "#882255",
    "swr": "#44AA99",
    "sparse": "#882255",
    "upgd": "#AA4499",
    "dash": "#661100",
    "hare_and_tortoise": "#6699CC",
    "layer_norm": "#117733",
    "crelu": "#661100",
    "deep_fourier_features": "#3377AA",
    "smooth_leaky_relu": "#CC6677",
    "rational": "#DDAA33",
    "online_normalization": "#AA4466",
}
_VARIANTS = {
    "set": "sparse",
    "rigl": "sparse",
    "ada_upgd": "upgd",
    "feature_upgd": "upgd",
    "standard": "backprop",
    "base": "backprop",
    "tuned_adam": "adam",
    "published_shrink_and_perturb": "shrink_and_perturb",
    "shrink_and_perturb_at_boundary": "shrink_and_perturb",
    "decoupled_weight_decay": "weight_decay",
    "rms_norm": "layer_norm",
    "optimizer_reset": "head_reset",
    "l2_init_after_first_update": "l2_init",
    "fire_at_boundary": "fire",
}
_OTHER_COLOURS = ("#332288", "#882255", "#999933", "#44AA99", "#AA4499", "#6699CC", "#661100", "#117733", "#DDAA33")
BASELINES = {"fresh_network": ("#555555", (0, (5, 2))), "linear": ("#111111", (0, (1, 1.5)))}
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))


class Line(NamedTuple):
    """A curve with its look."""

    curve: Curve
    colour: Any
    style: Any

    @property
    def label(self) -> str:
        """What the legend says."""
        return f"{self.curve.short_name} ({self.curve.note})"

    @property
    def above(self) -> int:
        """Its height: baselines lie below the methods."""
        return 3 if baseline(self.curve.run) is None else 2


def lines(found: Sequence[Curve]) -> list[Line]:
    """Every curve with its look; colours follow labels and methods, settings of a label are shades or styles of it."""
    colours = label_colours((c.run.label, c.run.meta["method"]) for c in found if baseline(c.run) is None)
    by_label: dict[str, list[int]] = {}
    for index, curve in enumerate(found):
        by_label.setdefault(baseline(curve.run) or curve.run.label, []).append(index)
    looks: dict[int, tuple[Any, Any]] = {}
    for label, members in by_label.items():
        base, style = BASELINES.get(label) or colours[label]
        shades = shades_of(base, len(members), len(by_label) == 1 and label in colours, label in BASELINES)
        for place, index in enumerate(members):
            looks[index] = (shades[place], style if style != "-" else STYLES[place % 4 if len(members) <= 4 else 0])
    return [Line(curve, *looks[i]) for i, curve in enumerate(found)]


def label_colours(labels: Iterable[tuple[str, str]]) -> dict[str, tuple[str, Any]]:
    """Colour and line style for every (label, method).

    A label that is a method's name, or the first of a method's labels, has the method's colour; every other label has
    one of its own, the same in every figure, save where two would meet in one. Styles other than a full line come when
    the colours are used up.
    """
    methods = dict(labels)
    wanted: dict[str, str] = {}
    # Labels that are a method's name come first, then variants, then those that only are of a method.
    for name_of in (lambda label: label, lambda label: _VARIANTS.get(label), methods.get):
        for label in sorted(methods.keys() - wanted.keys()):
            colour = _METHOD_COLOURS.get(name_of(label) or "")
            if colour and colour not in wanted.values():
                wanted[label] = colour
    chosen: dict[str, tuple[str, Any]] = {label: (colour, "-") for label, colour in wanted.items()}
    for label in sorted(methods.keys() - wanted.keys()):
        start = zlib.crc32(label.encode()) % len(_OTHER_COLOURS)
        others = _OTHER_COLOURS[start:] + _OTHER_COLOURS[:start]
        free = (each for each in ((c, s) for s, c in itertools.product(STYLES, others)) if each not in chosen.values())
        chosen[label] = next(free, (others[0], "-"))
    return chosen


def shades_of(base: str, number: int, alone: bool = False, lighter: bool = False) -> list[Any]:
    """`number` shades of a colour from light to dark, or to the colour itself; alone, the whole range of a map."""
    import matplotlib
    from matplotlib.colors import to_rgb

    if number == 1:
        return [base]
    if alone and number > 2:
        return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, number)))
    colour = np.array(to_rgb(base))
    amounts = np.linspace(0.7, 0.0, number) if lighter else np.linspace(0.45, -0.45, number)
    return [tuple(colour + (1 - colour) * a if a > 0 else colour * (1 + a)) for a in amounts]
