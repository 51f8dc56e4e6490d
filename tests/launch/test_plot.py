"""Figures: a file that is an image, a name for every setting that differs, stable colours, honest legends."""

import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from launch import compare, table
from launch import plot as command
from launch.analysis.curves import caption, curves, interval_words
from launch.analysis.metrics import metric_style
from launch.errors import InputError
from launch.figures import figure, parts
from launch.figures.style import label_colours, lines
from launch.plot import plot
from launch.storage.run_folder import read_runs, write_run

FIRST_BYTES = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def write(folder, label, values, hypers=({},), seeds=(0, 1, 2), metric="squared_error", **about):
    """A run with `values` [lane, bin], lanes being hypers x seeds, in bins of 10 steps."""
    values = np.asarray(values, float)
    lanes = [{"method": label, "seed": s, "hyper": dict(h)} for h in hypers for s in seeds]
    settings = {"steps": 10 * values.shape[1]} | about.pop("settings", {})
    meta = {"label": label, "method": label, "task": "toy", "settings": settings, "lanes": lanes, **about}
    bins = values.shape[1]
    write_run(folder / label, meta, 10 * np.arange(1, bins + 1), np.full(bins, 10), {metric: values})


def drawn(runs, metric="squared_error"):
    """The axes of a figure of some runs."""
    _, (ax,) = figure.new_figure()
    figure.draw_metric(ax, lines(curves(runs)), metric)
    return ax


def line_of(ax, words):
    return next(line for line in ax.get_lines() if words in line.get_label())


@pytest.fixture
def folder(tmp_path):
    values = np.arange(12.0).reshape(3, 4)
    write(tmp_path / "runs", "backprop", values)
    write(tmp_path / "runs", "continual_backprop", values + 1, diverged=[1])
    write(tmp_path / "runs", "fresh_network", values + 2, task_aware=True)
    write(tmp_path / "runs", "linear", values + 3, settings={"network": "linear"})
    return tmp_path / "runs"


@pytest.mark.parametrize("format", figure.FORMATS)
def test_the_file_is_an_image_of_its_format(folder, format):
    path = plot([folder], format=format)
    assert path == folder / f"figure.{format}"
    assert path.read_bytes().startswith(FIRST_BYTES[format]) and path.stat().st_size > 4000
    assert [each.name for each in folder.iterdir() if each.is_file()] == [path.name]


def test_what_changes_has_its_name_where_all_agree(tmp_path):
    for change in ("friction", "actuator_strength"):
        settings = {"task.change": change}
        write(tmp_path / change, "standard", np.ones((3, 4)), metric="condition", settings=settings)
    runs = [run for change in ("friction", "actuator_strength") for run in read_runs(tmp_path / change).values()]
    for shown, label in ((runs[:1], "friction"), (runs[1:], "actuator strength"), (runs, "value of what changes")):
        assert drawn(shown, "condition").get_ylabel() == label


def test_the_accelerators_preset_shares_no_axis_with_others(tmp_path):
    for preset in ("published", "published_wide", "accelerator"):
        write(tmp_path / preset, "standard", np.ones((3, 4)), settings={"preset": preset})
    plot([tmp_path / "published", tmp_path / "published_wide"])
    plot([tmp_path / "accelerator"])
    with pytest.raises(InputError, match="of preset accelerator, which shares no axis with published"):
        plot([tmp_path / "published", tmp_path / "accelerator"])


def test_the_same_runs_give_the_same_file(folder):
    assert plot([folder]).read_bytes() == plot([folder], out=folder / "again.png").read_bytes()


def test_the_mean_is_drawn_at_the_ends_of_the_bins(folder):
    ax = drawn(read_runs(folder))
    line = line_of(ax, "continual backprop")
    np.testing.assert_allclose(line.get_xdata(), [10, 20, 30, 40])
    np.testing.assert_allclose(line.get_ydata(), [5, 6, 7, 8])
    assert ax.get_ylabel() == "squared error" and ax.get_xlabel() == "step"


def test_from_five_seeds_on_the_band_is_the_interval(tmp_path):
    write(tmp_path, "m", np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]) + np.arange(4.0), seeds=range(5))
    ax = drawn(read_runs(tmp_path))
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    half = 2.7764451051977987 * np.sqrt(2.5 / 5)  # Student's 97.5% point with 4 degrees of freedom; s^2 is 2.5
    assert heights.min() == pytest.approx(3 - half) and heights.max() == pytest.approx(6 + half)
    assert len(ax.get_lines()) == 1


def test_below_five_seeds_the_seeds_are_thin_lines_and_there_is_no_band(folder):
    ax = drawn([read_runs(folder)["backprop"]])
    mean, *seeds = ax.get_lines()
    assert not ax.collections and [line.get_ydata().tolist() for line in seeds] == np.arange(12).reshape(3, 4).tolist()
    assert all(line.get_linewidth() < mean.get_linewidth() and line.get_label().startswith("_") for line in seeds)


def test_the_caption_says_what_is_drawn_of_the_seeds(tmp_path):
    for seeds, words in (
        (1, "the single seed"),
        (4, "each seed as a thin line"),
        (5, "95% Student interval"),
        (30, "95% bootstrap interval"),
    ):
        write(tmp_path, f"m{seeds}", np.ones((seeds, 2)), seeds=range(seeds))
        runs = [read_runs(tmp_path)[f"m{seeds}"]]
        assert words in caption(runs, curves(runs))
    assert interval_words(curves(read_runs(tmp_path))).count(", or ") == 3
    assert "interval" not in caption(read_runs(tmp_path))


def test_a_single_bin_shows_its_interval(tmp_path):
    write(tmp_path, "m", np.arange(6.0)[:, None], seeds=range(6))
    ax = drawn(read_runs(tmp_path))
    ((low, high),) = (segments[:, 1] for segments in ax.collections[0].get_segments())
    half = 2.5705818366147395 * np.std(np.arange(6.0), ddof=1) / np.sqrt(6)
    assert (low, high) == pytest.approx((max(0, 2.5 - half), 2.5 + half))


def test_nothing_is_drawn_beyond_its_bounds(tmp_path):
    write(tmp_path, "m", np.array([[0.9, 1.0]] * 4 + [[0.0, 0.99]]), seeds=range(5), metric="test_accuracy")
    ax = drawn(read_runs(tmp_path), "test_accuracy")
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == 100 and heights.min() >= 0 and ax.get_ylim()[1] < 105
    write(tmp_path / "e", "m", np.array([[0.0, 1.0]] * 4 + [[9.0, 1.0]]), seeds=range(5))
    ax = drawn(read_runs(tmp_path / "e"))
    assert ax.collections[0].get_paths()[0].vertices[:, 1].min() == 0


def test_a_far_curve_is_marked_at_the_edge_and_flattens_no_other(tmp_path):
    for label, level in (("a", 1.0), ("b", 1.2), ("c", 1.1), ("far", 9000.0)):
        write(tmp_path, label, level + np.linspace(0, 0.5, 12).reshape(3, 4))
    ax = drawn(read_runs(tmp_path))
    assert ax.get_ylim()[1] < 3 and [text.get_text() for text in ax.texts] == ["9,000"]


def test_a_single_spike_does_not_set_the_scale(tmp_path):
    values = np.tile(np.sin(np.arange(400)) + 2, (3, 1))
    values[:, 200] = 1e4
    write(tmp_path, "m", values)
    ax = drawn(read_runs(tmp_path))
    assert ax.get_ylim()[1] < 10 and [(text.xy[0], text.get_text()) for text in ax.texts] == [(2010, "10,000")]
    write(tmp_path / "steady", "m", values[:, :200])
    assert not drawn(read_runs(tmp_path / "steady")).texts


def test_tasks_are_counted_where_an_accuracy_is_the_headline(tmp_path):
    starts = [0, 20, 40, 60, 80]
    write(tmp_path, "a", np.full((3, 8), 0.5), metric="test_accuracy", task_starts=starts)
    ax = drawn(read_runs(tmp_path), "test_accuracy")
    assert ax.get_xlabel() == "task"
    assert ax.get_lines()[0].get_xdata().tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    write(tmp_path / "steps", "a", np.ones((3, 8)), task_starts=starts)
    assert drawn(read_runs(tmp_path / "steps")).get_xlabel() == "step"


def test_a_panel_has_eight_lines_and_the_baselines_are_in_each(tmp_path):
    hypers = [{"rate": rate / 10} for rate in range(1, 11)]
    write(tmp_path, "m", np.arange(60.0).reshape(30, 2), hypers=hypers)
    write(tmp_path, "fresh_network", np.ones((3, 2)))
    drawing, axes = parts.draw_curves(curves(read_runs(tmp_path)), ["squared_error"])
    named = [[line.get_label() for line in ax.get_lines() if not line.get_label().startswith("_")] for ax in axes]
    assert [len(each) for each in named] == [6, 6] and all(each[-1].startswith("fresh network") for each in named)
    assert len({ax.get_ylim() for ax in axes}) == 1 and len(drawing.legends[0].get_texts()) == 11


def test_accuracies_are_drawn_in_percent_and_bins_without_measurement_passed_over(tmp_path):
    write(tmp_path, "m", [[np.nan, 0.5, np.nan, 0.25]] * 3, metric="test_accuracy")
    ax = drawn(read_runs(tmp_path), "test_accuracy")
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [[20, 50], [40, 25]])
    assert "%" in ax.get_ylabel()


@pytest.mark.parametrize(("last", "label"), [(900, "step"), (20_000, "step (thousands)"), (10**6, "step (millions)")])
def test_the_step_axis_has_a_readable_unit(tmp_path, last, label):
    about = {
        "label": "m",
        "method": "m",
        "task": "toy",
        "settings": {},
        "lanes": [{"method": "m", "seed": 0, "hyper": {}}],
    }
    write_run(tmp_path / "m", about, [last // 2, last], [last // 2] * 2, {"loss": [[1.0, 2.0]]})
    assert drawn(read_runs(tmp_path), "loss").get_xlabel() == label


def test_the_legend_says_seeds_diverged_lanes_and_who_sees_task_boundaries(folder):
    names = {curve.run.label: f"{curve.name} ({curve.note})" for curve in curves(read_runs(folder))}
    assert names["backprop"] == "backprop (3 seeds)"
    assert names["continual_backprop"] == "continual backprop (3 seeds, 1 diverged)"
    assert names["fresh_network"] == "fresh network (3 seeds, task-aware)"


def test_an_unfinished_run_is_called_so(folder):
    (folder / "backprop/DONE").unlink()
    (curve,) = curves([read_runs(folder)["backprop"]])
    assert curve.note == "3 seeds, unfinished"


def test_baselines_come_last_and_are_grey_or_black_broken_lines(folder):
    found = lines(curves(read_runs(folder)))
    assert [line.curve.run.label for line in found][-2:] == ["fresh_network", "linear"]
    assert all(line.style != "-" and line.colour in ("#555555", "#111111") for line in found[-2:])
    assert all(line.style == "-" for line in found[:2])


def test_settings_that_differ_between_folders_are_named_and_equal_ones_are_in_the_caption(tmp_path):
    for network in ("relu", "tanh"):
        write(tmp_path / network, "backprop", np.ones((3, 2)), settings={"network": network, "bin": 10})
    runs = [run for name in ("relu", "tanh") for run in read_runs(tmp_path / name).values()]
    assert [curve.name for curve in curves(runs)] == ["backprop, network relu", "backprop, network tanh"]
    text = caption(runs, curves(runs))
    assert "toy" in text and "20 steps" in text and "Bin 10" in text and "seeds 0–2" in text and "network" not in text


def test_a_methods_own_settings_tell_it_from_no_other_method(tmp_path):
    own = {"continual_backprop": (1, 0.99), "redo": (0, 0.0)}
    for label, (most, decay_rate) in own.items():
        hypers = [{"step_size": 0.1, "decay_rate": decay_rate}]
        write(tmp_path, label, np.ones((3, 2)), hypers, settings={"max_replacements": most})
    assert [curve.name for curve in curves(read_runs(tmp_path))] == ["continual backprop", "redo"]
    hypers = [{"step_size": 0.2, "decay_rate": 0.5}]
    write(tmp_path, "mine", np.ones((3, 2)), hypers, settings={"max_replacements": 0}, method="redo")
    names = [curve.name for curve in curves(read_runs(tmp_path))]
    assert names == ["continual backprop, step size 0.1", "mine, step size 0.2, decay rate 0.5",
                     "redo, step size 0.1, decay rate 0"]  # fmt: skip


def test_a_setting_whose_value_is_the_label_is_not_named(tmp_path):
    for utility in ("random", "first_order"):
        write(tmp_path, utility, np.ones((3, 2)), settings={"utility": utility}, method="continual_backprop")
    write(tmp_path, "other", np.ones((3, 2)), settings={"utility": "recursive"}, method="continual_backprop")
    names = [curve.name for curve in curves(read_runs(tmp_path))]
    assert names == ["first order", "other, utility recursive", "random"]


def test_a_setting_that_only_one_of_two_runs_has_is_named(tmp_path):
    write(tmp_path / "a", "m", np.ones((3, 2)), settings={"utility": "random"})
    write(tmp_path / "b", "m", np.ones((3, 2)))
    runs = [run for name in "ab" for run in read_runs(tmp_path / name).values()]
    assert len({curve.name for curve in curves(runs)}) == 2


def test_runs_with_equal_settings_are_told_apart_by_seeds_or_folder(tmp_path):
    write(tmp_path / "one", "m", np.ones((3, 2)))
    write(tmp_path / "two", "m", np.ones((3, 2)))
    write(tmp_path / "three", "m", np.ones((3, 2)), seeds=(5, 6, 7))
    one, two, three = (read_runs(tmp_path / name)["m"] for name in ("one", "two", "three"))
    assert [curve.name for curve in curves([one, two])] == ["m, one", "m, two"]
    assert [curve.name for curve in curves([one, three])] == ["m, seeds 0–2", "m, seeds 5–7"]
    assert len({curve.name for curve in curves([one, two, three])}) == 3


def test_a_sweep_is_one_curve_per_setting_each_with_its_look(tmp_path):
    hypers = [{"rate": rate, "step_size": 0.1} for rate in (1e-4, 1e-3, 1e-2)]
    write(tmp_path, "m", np.arange(18.0).reshape(9, 2), hypers=hypers)
    found = lines(curves(read_runs(tmp_path)))
    assert [line.curve.name for line in found] == ["m, rate 0.0001", "m, rate 0.001", "m, rate 0.01"]
    assert len({str(line.colour) for line in found}) == 3
    assert [line.curve.lanes.tolist() for line in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def colours(*labels):
    return label_colours([(label, label) for label in labels])


def test_a_method_has_the_same_colour_in_every_figure():
    assert colours("backprop")["backprop"] == colours("zz", "backprop", "aa")["backprop"]
    of_method = label_colours([("mine", "continual_backprop")])
    assert of_method["mine"] == colours("continual_backprop")["continual_backprop"]
    assert colours("standard")["standard"] == colours("base")["base"] == colours("backprop")["backprop"]
    both = label_colours([("mine", "continual_backprop"), ("continual_backprop", "continual_backprop")])
    assert both["mine"] != both["continual_backprop"] == colours("continual_backprop")["continual_backprop"]


def test_no_two_lines_look_alike(tmp_path):
    many = [f"method_{i}" for i in range(25)]
    assert len(set(colours(*many, "backprop", "l2").values())) == 27
    for label in ("a", "b"):
        write(tmp_path, label, np.ones((15, 2)), hypers=[{"rate": rate / 10} for rate in range(1, 6)])
    looks = [(str(line.colour), line.style) for line in lines(curves(read_runs(tmp_path)))]
    assert len(set(looks)) == 10


def test_the_legend_has_names_and_the_caption_the_settings(tmp_path):
    for label, b1 in (("standard", 0.9), ("tuned_adam", 0.99)):
        write(tmp_path, label, np.ones((3, 2)), hypers=[{"b1": b1}], method="backprop")
    found = curves(read_runs(tmp_path))
    assert [line.label for line in lines(found)] == ["standard (3 seeds)", "tuned adam (3 seeds)"]
    assert [curve.name for curve in found] == ["standard, b1 0.9", "tuned adam, b1 0.99"]
    assert caption(read_runs(tmp_path), found).endswith("Settings that differ: standard: b1 0.9; tuned adam: b1 0.99.")


def test_conditions_are_drawn_seed_by_seed_without_a_mean(tmp_path):
    write(tmp_path, "standard", np.arange(24.0).reshape(6, 4), seeds=range(6), metric="condition")
    mean, *seeds = drawn(read_runs(tmp_path), "condition").get_lines()
    assert np.isnan(mean.get_ydata()).all() and len(seeds) == 6


def test_lines_against_a_number_look_different(tmp_path):
    hypers = [{"rate": rate, "step_size": size} for rate in (0.1, 0.2) for size in (1.0, 2.0, 3.0)]
    write(tmp_path, "m", np.ones((18, 4)), hypers=hypers)
    _, (ax,) = figure.new_figure()
    figure.draw_against(ax, curves(read_runs(tmp_path)), "squared_error", "rate")
    named = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == [f"m, step size {size}" for size in (1, 2, 3)]
    assert len({(str(line.get_color()), line.get_linestyle()) for line in named}) == 3


def test_a_setting_of_the_task_is_an_axis_and_differences_are_to_a_label_by_seed(tmp_path):
    for value in (0.0, 0.5, 1.0):
        settings = {} if value == 1 else {"task.abruptness": value}  # written only where it is not 1
        for label, about in (("fresh_network", {}), ("l2", {}), ("mine", {"seeds": (0, 2, 3)})):
            seeds = np.array(about.get("seeds", (0, 1, 2)), float)
            own = 0.0 if label == "fresh_network" else value + 1
            name = f"{label}_abruptness_{value:g}"
            values = (10 * seeds**2 + own)[:, None] + np.zeros(4)
            write(tmp_path, name, values, settings=settings, **({"method": label} | about))
    found = curves(read_runs(tmp_path))
    _, axes = figure.new_figure(2)
    for ax, reference in zip(axes, (None, "fresh_network"), strict=True):
        figure.draw_against(ax, found, "squared_error", "abruptness", reference)
    plain, differences = (
        {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")} for ax in axes
    )
    assert set(plain) == {"fresh network", "l2", "mine"} and set(differences) == {"l2", "mine"}
    assert plain["l2"].get_xdata().tolist() == [0, 0.5, 1]
    for line in differences.values():  # of seeds 0 and 2 alone where these are all that both have
        np.testing.assert_allclose(line.get_ydata(), [1, 1.5, 2])
    assert axes[1].get_ylabel().replace("\n", " ") == "squared error, last tenth of the run, minus fresh network's"
    for wrong in (("abruptnes", None), ("abruptness", "fresh")):
        with pytest.raises(InputError, match="did you mean"):
            figure.draw_against(axes[0], found, "squared_error", *wrong)
    with pytest.raises(InputError, match="--reference: needs --against"):
        plot([tmp_path], reference="l2")
    assert plot([tmp_path], against="abruptness", reference="fresh_network", out=tmp_path / "over.png").exists()
    assert "abruptness" not in caption([run for run in read_runs(tmp_path).values() if run.label.endswith("_1")])


def test_a_caption_says_once_what_differs_at_every_value_of_a_setting_of_the_task(tmp_path):
    for label, size in (("mine", 0.1), ("other", 0.2)):
        for value in (0.0, 0.5):
            about = {"hypers": [{"step_size": size}], "settings": {"task.abruptness": value}}
            write(tmp_path, f"{label}_abruptness_{value:g}", np.ones((3, 4)), **about)
    told = caption(read_runs(tmp_path), curves(read_runs(tmp_path)))
    assert told.endswith("Settings that differ: mine: step size 0.1; other: step size 0.2.")


def test_settings_within_a_network_are_named_by_what_differs(tmp_path):
    for activation in ("relu", "tanh"):
        network = f"MLP(widths=(5, 5), outputs=1, activation='{activation}')"
        write(tmp_path / activation, "backprop", np.ones((3, 2)), settings={"network": network})
    runs = [run for name in ("relu", "tanh") for run in read_runs(tmp_path / name).values()]
    assert [curve.name for curve in curves(runs)] == ["backprop, activation relu", "backprop, activation tanh"]
    assert "network: MLP, widths 5-5, outputs 1" in caption(runs)


def test_several_metrics_are_panels_and_one_that_some_runs_lack_is_drawn_for_the_others(tmp_path):
    write(tmp_path, "a", np.ones((3, 2)))
    write(tmp_path, "b", np.ones((3, 2)), metric="dormant_units")
    assert plot([tmp_path], metrics=["squared_error", "dormant_units"]).stat().st_size > 4000


@pytest.mark.filterwarnings("error")
def test_a_single_lane_an_empty_metric_and_no_bins_can_be_drawn(tmp_path):
    write(tmp_path, "single", [[1.0, 2.0]], seeds=(4,))
    write(tmp_path, "never", np.full((3, 2), np.nan))
    write(tmp_path, "empty", np.ones((3, 0)))
    assert plot([tmp_path]).exists()


def test_legend_and_caption_make_the_figure_taller_and_leave_the_panel_its_height(folder):
    drawing, axes = figure.new_figure()
    height = drawing.get_size_inches()[1]
    figure.draw_metric(axes[0], lines(curves(read_runs(folder))), "squared_error")
    figure.legend_below(drawing, axes)
    figure.add_caption(drawing, "words " * 60)
    drawing.draw_without_rendering()
    panel = axes[0].get_tightbbox().transformed(drawing.dpi_scale_trans.inverted())
    below = drawing.legends[0].get_window_extent().transformed(drawing.dpi_scale_trans.inverted())
    words = drawing.texts[0].get_window_extent().transformed(drawing.dpi_scale_trans.inverted())
    assert drawing.get_size_inches()[1] > height + 0.8
    assert panel.height > 0.9 * height
    assert panel.y0 >= below.y1 and below.y0 >= words.y1 and words.y0 >= 0


def test_names_that_are_too_wide_for_the_figure_are_broken_into_lines():
    drawing, (ax,) = figure.new_figure()
    names = ["short", "a setting with a long name, " * 6, "x" * 150]
    for name in names:
        ax.plot([0, 1], label=name)
    figure.legend_below(drawing, [ax])
    (legend,) = drawing.legends
    within = legend.get_window_extent()
    assert within.x0 >= 0 and within.x1 <= drawing.bbox.width and within.y0 >= 0
    shown = [text.get_text() for text in legend.get_texts()]
    assert ["".join(text.split()) for text in shown] == ["".join(name.split()) for name in names]


def test_an_unknown_metric_names_the_nearest_and_those_there_are(folder):
    with pytest.raises(InputError, match=r"did you mean 'squared_error'.*allowed: squared_error"):
        plot([folder], metrics=["sqared_error"])
    assert not (folder / "figure.png").exists()


def test_default_metric_is_the_headline(tmp_path):
    write(tmp_path, "m", np.ones((3, 2)), metric="online_accuracy")
    assert plot(tmp_path).exists()


def test_a_metric_without_an_entry_gets_its_name_and_a_direction():
    assert metric_style("my_accuracy")[:3] == ("my accuracy", "higher", 1.0)
    assert metric_style("my_cost").better == "lower"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": "figure.txt"}, "does not end in"),
        ({"out": "figure.pdf", "format": "png"}, "--format=png asks"),
        ({"out": "absent/figure.png"}, "no folder"),
        ({"format": "jpg"}, "--format: unknown 'jpg'"),
    ],
)
def test_wrong_targets(folder, monkeypatch, given, words):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=words):
        plot([folder], **given)


def test_the_command(folder, capsys):
    values = flags.FlagValues()
    command.define_flags(values)
    rest = values(["plot", str(folder), "--metric=squared_error", "--format=svg"])
    command.main(rest[1:], values)
    assert capsys.readouterr().out.strip() == str(folder / "figure.svg")


def run(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["plot", "compare", "export"])
def test_commands_answer_wrong_input_with_one_line_and_status_2(module, tmp_path):
    for arguments in (["--fromat=png"], [str(tmp_path / "absent")], ["--format=jpg", str(tmp_path)]):
        done = run(f"launch.{module}", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_help_ends_well_and_importing_brings_no_jax():
    done = run("launch.compare", "--helpfull")
    assert done.returncode == 0 and "--window" in done.stdout
    code = "import sys, launch.plot, launch.compare, launch.export, launch.report; "
    code += "print({'jax', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_runs_made_for_tuning_are_no_headline(folder, tmp_path, capsys):
    write(tmp_path / "tuning", "l2", np.ones((6, 4)), hypers=({"step_size": 0.1}, {"step_size": 0.2}), tuning=True)
    for directories in ([tmp_path / "tuning"], [folder, tmp_path / "tuning"]):
        with pytest.raises(InputError, match=r"tuning/l2: runs on tuning seeds \(l2\)"):
            plot(directories)
    assert not list(tmp_path.rglob("*.png"))
    assert plot([tmp_path / "tuning"], tuning=True).exists()
    assert plot([tmp_path / "tuning"], against="step_size", out=tmp_path / "against.png").exists()
    for module in (table, compare):
        values = flags.FlagValues()
        module.define_flags(values)
        given = values(["command", str(folder), *[str(tmp_path / "tuning")] * (module is table)])[1:]
        module.main(given, values)
        assert ("tuning" in capsys.readouterr().err) == (module is table)


def by_task(folder, label="m"):
    """Three seeds, four tasks of five bins of 10 steps, measured at their ends: 0.1, 0.2, 0.3, 0.4."""
    values = np.full((3, 20), np.nan)
    values[:, 4::5] = [0.1, 0.2, 0.3, 0.4]
    write(folder, label, values, metric="test_accuracy", task_starts=[0, 50, 100, 150, 200])


def test_a_table_of_what_is_measured_once_per_task(tmp_path):
    """A tenth of the run is less than a task: its first measurement stands for the beginning, its last for the end."""
    by_task(tmp_path)
    row = table.table(list(read_runs(tmp_path).values())).splitlines()[-1]
    assert row == "| m | test accuracy (%) | 10 [10, 10] | 40 [40, 40] | 25 [25, 25] | 3 |"


@pytest.mark.parametrize(("every", "tasks", "heights"), [("2tasks", [2, 4], [15, 35]), ("150", [3, 4], [20, 40])])
def test_wider_bins_are_drawn(tmp_path, monkeypatch, every, tasks, heights):
    by_task(tmp_path)
    axes, captions = [], []
    draw_metric = figure.draw_metric
    monkeypatch.setattr(figure, "draw_metric", lambda ax, *given: axes.append(ax) or draw_metric(ax, *given))
    monkeypatch.setattr(figure, "add_caption", lambda drawing, text: captions.append(text))
    plot(tmp_path, every=every)
    np.testing.assert_allclose(axes[0].get_lines()[0].get_xydata(), np.stack([tasks, heights], axis=1))
    assert "Means over bins of " + every.replace("tasks", " tasks") in captions[0]


def test_wider_bins_that_cannot_be(folder):
    for every, words in (("2tasks", "lacks task_starts"), ("15", "within the bin"), ("2 tasks", "--every: '2 tasks'")):
        with pytest.raises(InputError, match=words):
            plot(folder, every=every)
    assert not (folder / "figure.png").exists()


def test_wider_bins_on_the_command_line(tmp_path, capsys):
    by_task(tmp_path)
    for module, words in ((command, "figure.png"), (table, "| 15 [15, 15] | 35 [35, 35] | 25 [25, 25] | 3 |")):
        values = flags.FlagValues()
        module.define_flags(values)
        module.main(values(["command", str(tmp_path), "--every=2tasks"])[1:], values)
        assert words in capsys.readouterr().out


def test_the_caption_says_what_was_tuned_on(folder, monkeypatch):
    captions = []
    monkeypatch.setattr(figure, "add_caption", lambda drawing, text: captions.append(text))
    plot([folder])
    write(folder, "l2", np.ones((3, 4)), tuned_on="seeds 100:120, 5 settings a method")
    plot([folder])
    assert "uned on" not in captions[0] and captions[1].endswith(" Tuned on seeds 100:120, 5 settings a method.")
