"""What people write in flags, and what is said when they write it wrong."""

import pytest

from launch.config import syntax
from launch.config.syntax import Call, Entry
from launch.errors import InputError


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("backprop", Call("backprop", {})),
        ("upgd(scope=global,a=lambda,b=True)", Call("upgd", {"scope": "global", "a": "lambda", "b": True})),
        (" mlp ( widths=(100, 50), activation=tanh )", Call("mlp", {"widths": (100, 50), "activation": "tanh"})),
        ("f(a=-1e-3,b='x,y',c=True,d=None,e=[1])", Call("f", {"a": -1e-3, "b": "x,y", "c": True, "d": None, "e": [1]})),
        ("f()", Call("f", {})),
    ],
)
def test_a_call_is_a_name_and_settings(text, call):
    assert syntax.parse_call("--task", text) == call


@pytest.mark.parametrize(
    "text",
    ["f(1)", "f(a)", "f(a=)", "f(a=1", "f(a=1))", "f(**a)", "f(a=1)(b=2)", "f(a=1).g(b=2)", "f(a=1,a=2)", "f(a=g())",
     "f(a={[]: 1})", "f(a=1)+g(b=1)"],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(InputError) as error:
        syntax.parse_call("--task", text)
    assert str(error.value) == f"--task: '{text}' is not of the form name(setting=value,...)"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("5", 5), ("(1,2)", (1, 2)), ("True", True), ("None", None), ("adam", "adam"), ("a b", "a b"),
     ("{[]}", "{[]}"), ("-", "-")],
)  # fmt: skip
def test_values_are_pythons_and_else_strings(text, value):
    assert syntax.parse_value(text) == value


def test_methods_carry_labels_and_settings():
    text = "backprop, fast=continual_backprop(replacement_rate=1e-3,utility=random),r=l2()"
    assert syntax.parse_methods(text) == [
        Entry("backprop", Call("backprop", {})),
        Entry("fast", Call("continual_backprop", {"replacement_rate": 1e-3, "utility": "random"})),
        Entry("r", Call("l2", {})),
    ]


def test_a_method_of_ones_own_is_labelled_by_its_own_name():
    assert syntax.parse_methods("package.module:mine") == [Entry("mine", Call("package.module:mine", {}))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("backprop,backprop", "label 'backprop' appears twice"),
        ("a=backprop,a=l2", "label 'a' appears twice"),
        ("a/b=backprop", "label 'a/b' may hold letters"),
        ("..=backprop", "label '..' may hold letters"),
        ("a=backprop@10->l2", "--branch_from=DIR/LABEL@STEP"),
        ("backprop(step_size=0.1", "name(setting=value,...)"),
    ],
)
def test_wrong_methods(text, words):
    with pytest.raises(InputError, match=r"^--methods: ") as error:
        syntax.parse_methods(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), (2, (0, 1)), ("5:8", (5, 6, 7)), ("0:1", (0,)), ("1e1", tuple(range(10)))]
)
def test_seeds(text, seeds):
    assert syntax.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["0", "-1", "5:5", "5:3", "-1:3", "1.5", "", "a", "3:", ":3", "1:2:3", "nan", "inf", "1e99"]
)
def test_wrong_seeds_name_the_flag_and_the_value(text):
    with pytest.raises(InputError, match=r"^--seeds: ") as error:
        syntax.parse_seeds(text)
    assert f"'{text}'" in str(error.value)


def test_settings_have_an_owner_or_none():
    assert syntax.parse_setting("--set", " a=1 ") == ("", "a", "1")
    assert syntax.parse_setting("--set", "l2.a=b=c") == ("l2", "a", "b=c")
    for text in ("a", "=1", "a=", ""):
        with pytest.raises(InputError, match=r"^--set: '.*' is not of the form NAME=VALUE$"):
            syntax.parse_setting("--set", text)


def test_ranges_hit_both_ends_and_are_even():
    assert syntax.parse_sweep_values("--sweep", "1e-6:1e-2:log5") == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
    assert syntax.parse_sweep_values("--sweep", "0:1:lin3") == [0.0, 0.5, 1.0]
    assert syntax.parse_sweep_values("--sweep", "0.1, 3") == [0.1, 3.0]


@pytest.mark.parametrize(
    "text", ["a", "1,,2", "1,1", "0:1:log3", "1:0:lin3", "0:1:lin1", "0:1:log", "0:1:3", "1:2", "-1:1:log3", "0:1:linx"]
)
def test_wrong_sweeps(text):
    with pytest.raises(InputError, match=r"^--sweep: ") as error:
        syntax.parse_sweep_values("--sweep", text)
    assert f"'{text}'" in str(error.value)


def test_commas_inside_brackets_do_not_split():
    assert syntax.split("a(b=(1,2),c=[3,4]), d ,,e") == ["a(b=(1,2),c=[3,4])", "d", "e"]
