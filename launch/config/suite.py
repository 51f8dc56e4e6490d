"""What `launch.suite` runs, by `suite.toml`: tasks, the settings tried of every method, lengths that fit a budget."""

import dataclasses
import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.config.experiment import Experiment, Job, resolve
from launch.config.hyperparameters import Hyperparameter
from launch.config.methods import METHODS
from launch.config.optimizers import OPTIMIZER
from launch.config.registry import find_task_spec
from launch.config.signatures import read_fields
from launch.config.syntax import Entry, parse_call, parse_methods, split, with_settings
from launch.errors import InputError, unknown
from launch.storage.durable import replacing

FILE = Path(__file__).parent / "suite.toml"
SUITE = "suite.json"
REFERENCES = ("fresh_network", "backprop")
"""Methods that are always among those compared, since the others are compared with them."""
SETTINGS = {9: (3, 3), 3: (3, 1), 1: (1, 1)}
"""How many settings a method may have: step sizes, values of its number. Without a number all are step sizes."""
STEP_SIZE_RATIO, RATIO = 10**0.5, 10.0
OVER_BACKPROP = 1.3
"""What a step of a method is expected to take, in steps of backprop."""


class Course(NamedTuple):
    """A task of the suite: what `Experiment` has under these names, its length in tasks, and the shortest."""

    task: str
    preset: str
    network: str
    tasks: int
    least: int


class Number(NamedTuple):
    """What of a method is tried: the name (empty for nothing but step sizes), values, or the factor between two."""

    number: str
    values: tuple[float, ...] = ()
    ratio: float = RATIO


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is compared.

    Attributes:
        methods: entries as `--methods` writes them, the references among them.
        tasks: number of tasks to run by name of the course, in the order in which they are run.
        settings: how many settings every method is tuned among, one of `SETTINGS`.
        tuning_seeds: seeds by which settings are chosen.
        seeds: other seeds, by which the winners are reported.
    """

    methods: tuple[str, ...]
    tasks: Mapping[str, int]
    settings: int
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def entries(self) -> list[Entry]:
        """The methods with their labels."""
        return parse_methods(",".join(self.methods))

    @property
    def lanes(self) -> int:
        """Runs of a method on a task."""
        return self.settings * len(self.tuning_seeds) + len(self.seeds)

    def tuning(self, name: str, methods: Sequence[str], data_dir: str | None = None) -> Experiment:
        """The experiment that tunes some methods on a course."""
        course = courses()[name]
        has_data = "data_dir" in read_fields(find_task_spec(parse_call("--task", course.task)).code).defaults
        task = with_settings(course.task, data_dir=data_dir) if has_data else course.task
        plain = Experiment(
            task, ",".join(methods), self.tuning_seeds, tasks=self.tasks[name], preset=course.preset,
            network=course.network, tuning=True,
        )  # fmt: skip
        return dataclasses.replace(
            plain, sweep=tuple(t for job in resolve(plain).jobs for t in tried(job, self.settings))
        )


def courses() -> dict[str, Course]:
    """The tasks of the suite by name."""
    return _read()[0]


@functools.cache
def _read() -> tuple[dict[str, Course], dict[str, Number]]:
    """Courses, and what is tried of methods that are named in the file.

    Raises:
        InputError: it names a method or a number that there is not, or misses a key.
    """
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    defaults = {"preset": "corrected", "network": ""}
    try:
        found = {name: Course(**defaults | {"task": name} | part) for name, part in table["tasks"].items()}
        numbers = {
            name: Number(**part | {"values": tuple(part.get("values", ()))}) for name, part in table["methods"].items()
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{FILE}: {error}") from None
    for name, each in numbers.items():
        if name not in METHODS:
            raise unknown(f"{FILE}: methods", name, METHODS)
        if each.number and each.number not in METHODS[name].hyperparameters:
            raise unknown(f"{FILE}: methods.{name}.number", each.number, METHODS[name].hyperparameters)
    return found, numbers


def number_of(job: Job) -> Number:
    """What is tried of a method: what the file says, else the first of its own numbers that is not 0 here."""
    named = _read()[1].get(job.method.name)
    if named is not None:
        return named
    hyper = job.lanes[0].hyper
    own = (name for name in job.method.hyperparameters if name not in OPTIMIZER and hyper[name] != 0)
    return Number(next(own, ""))


def tried(job: Job, settings: int) -> list[str]:
    """The values that a method is tuned among, as `--sweep` writes them: `settings` combinations of them.

    Raises:
        InputError: no such number of settings.
    """
    if settings not in SETTINGS:
        raise InputError(f"--settings: {settings} is none of {', '.join(map(str, sorted(SETTINGS)))}")
    number, (sizes, values) = number_of(job), SETTINGS[settings]
    hyper, known = job.lanes[0].hyper, job.method.hyperparameters
    if not number.number:
        sizes, values = settings, 1
    # Nine step sizes lie as densely as three of three and reach further to both sides.
    ratio = STEP_SIZE_RATIO if sizes <= 3 else STEP_SIZE_RATIO**0.5
    found = {"step_size": around(known["step_size"], hyper["step_size"], sizes, ratio)}
    if values > 1:
        name = number.number
        found[name] = list(number.values) or around(known[name], hyper[name], values, number.ratio)
    return [f"{job.label}.{name}={','.join(map(repr, each))}" for name, each in found.items() if len(each) > 1]


def around(number: Hyperparameter, centre: float, count: int, ratio: float) -> list[float]:
    """`count` values of a number around `centre`, a factor of `ratio` between two, all of them allowed.

    Shares near 1 are spread by their distance from 1, as 0.9, 0.99 and 0.999.

    Raises:
        InputError: there are not as many.
    """
    mirrored = number.high == 1 and 0.5 <= centre < 1
    found: list[float] = []
    for power in sorted(range(-40, 41), key=abs):
        value = 1 - (1 - centre) * ratio**power if mirrored else centre * ratio**power
        value = float(round(value)) if number.integer else float(f"{value:.4g}")
        try:
            number.checked("", value)
        except InputError:
            continue
        if value not in found and (value != 0 or centre == 0):
            found.append(value)
        if len(found) == count:
            return sorted(found)
    raise InputError(f"{centre:g}: only {len(found)} values around it are a {number.allowed}, {count} are to be tried")


# Length -------------------------------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """What backprop takes on a course: seconds a lane and step, and steps a task; seconds to compile."""

    seconds: float
    steps: int
    compiling: float = 0.0


def hours(suite: Suite, rates: Mapping[str, Rate], workers: int = 1) -> dict[str, float]:
    """Expected hours by course."""
    number = len(suite.methods)
    found = {}
    for name, tasks in suite.tasks.items():
        rate = rates[name]
        work = suite.lanes * tasks * rate.steps * rate.seconds * OVER_BACKPROP
        found[name] = number * (work + 2 * rate.compiling) / 3600 / workers
    return found


def fitted(suite: Suite, rates: Mapping[str, Rate], budget: float, workers: int = 1) -> Suite:
    """The suite with as many settings, and then as long, as the budget of hours allows.

    Raises:
        InputError: the budget is not enough for the shortest.
    """
    for settings in (each for each in SETTINGS if each <= suite.settings):
        for percent in range(100, -1, -1):
            lengths = {n: max(courses()[n].least, round(most * percent / 100)) for n, most in suite.tasks.items()}
            one = dataclasses.replace(suite, settings=settings, tasks=lengths)
            if sum(hours(one, rates, workers).values()) <= budget:
                return one
    least = sum(hours(one, rates, workers).values())
    raise InputError(
        f"--budget: {budget:g} hours are not enough; {len(suite.methods)} methods on {len(suite.tasks)} tasks take "
        f"{least:.3g} with one setting each and the shortest runs; give fewer --methods or --tasks"
    )


# The folder ---------------------------------------------------------------------------------------------------------


def with_references(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, the references that are not among them first."""
    there = {entry.label for entry in parse_methods(",".join(methods))} if methods else set()
    return (*(name for name in REFERENCES if name not in there), *methods)


def joined(there: Suite, asked: Mapping[str, Any]) -> Suite:
    """The suite of a folder with the methods and tasks that are asked for beside it.

    Raises:
        InputError: something else is asked for than what is there.
    """
    for name in ("settings", "tuning_seeds", "seeds"):
        if asked.get(name) is not None and asked[name] != getattr(there, name):
            raise InputError(
                f"--{name}: the suite in this folder has others; leave --{name} out, or choose another --workdir"
            )
    labels = {entry.label: text for entry, text in zip(there.entries, there.methods, strict=True)}
    added = []
    for text in asked.get("methods") or ():
        (entry,) = parse_methods(text)
        if labels.get(entry.label, text) != text:
            raise InputError(
                f"--methods: label '{entry.label}' is {labels[entry.label]} in this folder; write other=..."
            )
        added += [text] * (entry.label not in labels)
    new = {name: courses()[name].tasks for name in asked.get("tasks") or () if name not in there.tasks}
    tasks = {name: ({**new, **there.tasks})[name] for name in courses() if name in new or name in there.tasks}
    return dataclasses.replace(there, methods=(*there.methods, *added), tasks=tasks)


def parse_tasks(text: str | None) -> list[str]:
    """Names of courses, all of them where nothing is given.

    Raises:
        InputError: there is none of that name.
    """
    names = split(text or ",".join(courses()))
    for name in names:
        if name not in courses():
            raise unknown("--tasks", name, courses())
    return [name for name in courses() if name in names]


def write_suite(root: Path, suite: Suite) -> None:
    """Write down what is compared."""
    with replacing(root / SUITE) as file:
        file.write((json.dumps(dataclasses.asdict(suite), indent=1) + "\n").encode())


def read_suite(root: Path) -> Suite | None:
    """The suite of a folder, if there is one.

    Raises:
        InputError: its list cannot be read.
    """
    path = root / SUITE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(found[name]) for name in ("methods", "tuning_seeds", "seeds")}
        return Suite(**found | lists)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read, truncated or damaged ({' '.join(str(error).split())})") from None


def every_method() -> tuple[str, ...]:
    """All methods of the registry that are compared by default, the references first."""
    return with_references([name for name in METHODS if name not in REFERENCES])
