"""The documentation builds without a warning, its code and its notebook run, and it names all that is public."""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from absl import flags

import plastic_jax
from launch import train
from launch.config.experiment import resolve
from launch.config.methods import METHODS, NETWORK_OPTIONS, MethodSpec
from launch.config.optimizers import OPTIMIZERS
from launch.config.registry import LEARNERS, TASKS
from launch.config.signatures import read_fields
from launch.config.syntax import parse_call, parse_methods

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
MODULES = [module.name for module in pkgutil.walk_packages(plastic_jax.__path__, "plastic_jax.")]
PAGES = [
    path for path in sorted(DOCS.rglob("*.md")) if "```python\n" in path.read_text() and path.stem != "architecture"
]
WITHOUT_DATA = ("slowly_changing_regression", "teacher", "ant_model", "ant", "slippery_ant")

RUN = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True).execute(cwd=sys.argv[3])
nbformat.write(notebook, sys.argv[2])
"""


def needs(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"DOCUMENTATION NOT TESTED: package '{module}' is not installed (extra docs)")


def call(*command, **environment):
    """Runs a program of this Python; the library is importable, warnings of other packages are its own matter."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1", **environment}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; every warning is an error."""
    needs("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml")
    folder = tmp_path_factory.mktemp("site")
    call("-m", "mkdocs", "build", "--strict", "--site-dir", str(folder))
    return folder


class Page(HTMLParser):
    """Targets and links of one page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.maths = set(), [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        self.maths += tag == "math"
        assert "arithmatex" not in (given.get("class") or "").split(), "mathematics that was not drawn"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}


def test_links_lead_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(urljoin(path.as_uri(), link))
            if parts.scheme != "file":
                continue
            target = Path(unquote(parts.path))
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (parts.fragment and target in pages and parts.fragment not in pages[target].ids):
                broken.append((str(path.relative_to(site)), link))
    assert len(pages) > 15
    assert broken == []


def test_mathematics_is_drawn(site, pages):
    assert pages[site / "methods" / "continual_backprop.html"].maths > 5


def test_site_loads_nothing_from_elsewhere(pages):
    loaded = {
        link for page in pages.values() for link in page.links if re.search(r"^(https?:)?//.*\.(js|css|png)", link)
    }
    assert loaded == set()


def test_every_public_name_is_in_the_reference(site):
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}

    def where(name):
        value = getattr(plastic_jax, name)
        if inspect.ismodule(value):
            return {value.__name__}
        return {f"plastic_jax.{name}", f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"}

    missing = [name for name in plastic_jax.__all__ if not where(name) & documented]
    assert missing == []


@pytest.mark.parametrize(
    ("page", "method"),
    [
        ("continual_backprop", plastic_jax.continual_backprop),
        ("redo", plastic_jax.redo),
        ("regrama", plastic_jax.regrama),
        ("snr", plastic_jax.snr),
        ("cpr", plastic_jax.cpr),
        ("shrink_and_perturb", plastic_jax.shrink_and_perturb),
        ("shrink_and_perturb", plastic_jax.published_shrink_and_perturb),
        ("shrink_and_perturb", plastic_jax.shrink_and_perturb_at_boundary),
        ("weight_decay", plastic_jax.weight_decay),
        ("l2_init", plastic_jax.l2_init),
        ("hare_and_tortoise", plastic_jax.hare_and_tortoise),
        ("dash", plastic_jax.dash),
        ("l2_init", plastic_jax.l2_init_after_first_update),
        ("spectral", plastic_jax.spectral),
        ("parseval", plastic_jax.parseval),
        ("weight_clipping", plastic_jax.weight_clipping),
        ("normalize_and_project", plastic_jax.normalize_and_project),
        ("fire", plastic_jax.fire),
        ("fire", plastic_jax.fire_at_boundary),
        ("swr", plastic_jax.swr),
        ("sparse", plastic_jax.sparse),
        ("upgd", plastic_jax.upgd),
        ("upgd", plastic_jax.feature_upgd),
        ("adam", plastic_jax.adam),
        ("idbd", plastic_jax.idbd),
        ("idbd", plastic_jax.k1),
        ("idbd", plastic_jax.autostep),
        ("idbd", plastic_jax.of_new_weights),
        ("metaoptimize", plastic_jax.metaoptimize),
        ("metaoptimize", plastic_jax.hypergradient),
        ("fade", plastic_jax.fade),
        ("obgd", plastic_jax.obgd),
        ("obgd", plastic_jax.intentional),
        ("smd", plastic_jax.smd),
        ("swift_td", plastic_jax.swift_td),
        ("boundary_resets", plastic_jax.reset_head_at_boundary),
    ],
)
def test_pages_name_every_parameter(page, method):
    text = (DOCS / "methods" / f"{page}.md").read_text()
    names = set(inspect.signature(method).parameters) - {"inner", "units", "key"}
    assert [name for name in names if f"`{name}`" not in text] == []


def test_pages_name_every_utility_and_metric():
    utilities, metrics = (DOCS / page for page in ("methods/utilities.md", "metrics.md"))
    assert [name for name in plastic_jax.UTILITIES if f'`"{name}"`' not in utilities.read_text()] == []
    own = [n for n, f in inspect.getmembers(plastic_jax.metrics, inspect.isfunction) if not n.startswith("_")]
    measures = [name for name in own if not name.endswith("_of")]
    assert [name for name in measures if f"`{name}" not in metrics.read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_code_of_the_pages_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in blocks:
            exec(block, names)
    shown = re.findall(r"^```text\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for text in shown:
        assert text in printed.getvalue()


KINDS = {
    **{name: spec for spec in METHODS.values() for name in (spec.name, *spec.aliases)},
    **{name: spec for spec in TASKS.values() for name in (spec.name, *spec.aliases)},
    **LEARNERS,
}
"""What a page may write as `name(setting=value)`."""


def settings_of(kind):
    """The settings that a method, a task or a learner has, out of its source."""
    if isinstance(kind, MethodSpec):
        return {
            *kind.settings,
            *(name for spec in OPTIMIZERS.values() for name in spec.settings),
            *NETWORK_OPTIONS,
            "normalise_inputs",
            *(kind.signature.parameters if kind.signature else ()),
        }
    return set(read_fields(kind if isinstance(kind, str) else kind.code).defaults)


def calls(page):
    """Every `name(setting=value,...)` of a page that is a method, a task or a learner."""
    found = re.findall(r"\b(\w+)\((\w+=[^()`]*(?:\([^()`]*\)[^()`]*)*)\)", page.read_text())
    return [
        (name, parse_call("", f"{name}({inside})")) for name, inside in found if name in KINDS and "..." not in inside
    ]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_settings_that_a_page_names_exist_and_are_allowed(page):
    for name, call in calls(page):
        kind = KINDS[name]
        kind = kind.around(call.settings.get("inner")) if isinstance(kind, MethodSpec) else kind
        assert set(call.settings) <= settings_of(kind), (name, call.settings)
        for setting, value in call.settings.items():
            if isinstance(kind, MethodSpec) and setting in kind.settings and setting != "utility":
                kind.settings[setting].checked(f"{page.name}: {name}.{setting}", value)


def test_pages_name_settings():
    """So that the test above has something to look at."""
    assert sum(len(calls(page)) for page in DOCS.rglob("*.md")) > 15


def test_which_method_weighs_every_method_and_every_study():
    text = (DOCS / "which_method.md").read_text()
    pages = {page.stem for page in (DOCS / "methods").glob("*.md")} - {"utilities", "head_reset", "dropout"}
    assert {page for page in pages if f"methods/{page}.md" not in text} == set()
    studies = {folder.name for folder in (ROOT / "results").iterdir() if folder.is_dir()} - {"resume", "benchmarks"}
    assert {study for study in studies if f"results/{study}/" not in text} == set()


def test_every_method_of_the_library_has_a_page():
    pages = "".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    assert {spec.name for spec in METHODS.values() if spec.factory and f"`{spec.name}`" not in pages} <= {
        "l2",
        "decoupled_weight_decay",
    }


def test_every_trap_is_listed_and_told_with_what_is_done_here():
    text = (DOCS / "traps.md").read_text()
    listed, told = re.findall(r"^\| \[(\d+)\]", text, re.MULTILINE), re.split(r"^## (\d+)\.", text, flags=re.MULTILINE)
    assert listed == told[1::2]
    assert [number for number, section in zip(told[1::2], told[2::2], strict=True) if "**Here.**" not in section] == []
    presets = re.findall(r"`--preset=(\w+)`", text)
    assert presets and all(any(preset in spec.presets for spec in TASKS.values()) for preset in presets)


def train_commands():
    """Every whole `launch.train` of the pages' shell blocks; those that go on from a run want that run."""
    found = []
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for command in re.findall(r"^python -m launch\.train ((?:[^\n]*\\\n)*[^\n]*)", block, re.MULTILINE):
                if "..." not in command and "--branch_from" not in command:
                    found.append(pytest.param(command, id=f"{page.name}: {command[:60]}"))
    return found


@pytest.mark.parametrize("command", train_commands())
def test_training_commands_of_the_pages_are_understood(command):
    # What the shell makes of it: quotes and continued lines too.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True
    ).stdout
    values = flags.FlagValues()
    train.define_flags(values)
    values(["launch.train", *words.split("\0")[:-1]])
    experiment = train.from_flags(values)
    parse_methods(experiment.methods)
    if experiment.task.startswith(WITHOUT_DATA):
        assert resolve(experiment).jobs


@pytest.mark.parametrize("name", MODULES)
def test_doctests_run(name):
    if name.endswith("integrations.equinox"):
        needs("equinox")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def gaps(path):
    """The notebook's table of differences: (mean, low, high) by name."""
    number = r"\s*([+-][\d.]+)"
    printed = "".join("".join(o.get("text", [])) for cell in cells(path, "code") for o in cell["outputs"])
    found = re.findall(rf"^(.+?){number} \[{number},{number}\]$", printed, re.MULTILINE)
    return {name.strip(): tuple(map(float, values)) for name, *values in found}


def check_claims(found):
    early, late, kept, rescued, again, slower, counted = found.values()
    assert abs(early[0]) < 5  # what is lost later is there at first
    assert late[2] < -15
    assert kept[1] > 0
    assert rescued[1] > 20
    assert again[1] > 0
    assert late[2] < slower[1] and slower[2] < 0
    assert late[2] < counted[1] and counted[2] < 0


@pytest.mark.slow
def test_notebook_runs_and_its_claims_hold(tmp_path):
    needs("nbclient", "ipykernel", "matplotlib")
    call("-c", RUN, str(NOTEBOOK), str(tmp_path / "run.ipynb"), str(tmp_path))
    check_claims(gaps(tmp_path / "run.ipynb"))


def test_stored_notebook_is_as_it_was_run():
    """After a change: `jupyter execute --inplace docs/quickstart.ipynb`."""
    check_claims(gaps(NOTEBOOK))
    assert all(cell["execution_count"] for cell in cells(NOTEBOOK, "code"))
    outputs = [output for cell in cells(NOTEBOOK, "code") for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    text = NOTEBOOK.read_text()
    assert str(Path.home()) not in text and "/tmp/" not in text and len(text) < 200_000
