"""The contract of a task, and what crosses from tasks to the report: scores that cannot be bare numbers.

A task is one file in this room, found by its file name: `VERB`, `Config` and `score` (see `Task`). A score has an
interval, the number of subjects behind it and the prevalence; building one without them fails. A task's result holds
its scores, the paired comparisons with its controls, and what was predicted for each study.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast, get_args

from pydantic import Field, FiniteFloat, model_validator

import tomoglot.tasks
from tomoglot.config import Settings
from tomoglot.studies.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tomoglot.batches.loader import StudySource
    from tomoglot.checkpoint import Loaded
    from tomoglot.recipes.recipe import Recipe

Verb = Literal["evaluate", "transfer"]

MODEL = "model"
SCRATCH = "from scratch"
IMAGE_REMOVED = "image removed"
MACRO = "macro"
NAME_LIMIT = 100


class Task(Protocol):
    """What a task's file holds.

    Attributes:
        VERB: `evaluate` (nothing is trained) or `transfer` (something is trained on labels).
        Config: settings that all have defaults, among them `split: str = "test"` ("all" means every study),
            `controls: bool = True` and `seed: int = 0`; tasks that train on labels also have `label_fraction`.
    """

    VERB: Verb
    Config: type[Settings]

    def score(
        self,
        model: Recipe | Loaded,
        store: StudySource,
        config: Any,
        *,
        out: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TaskResult:
        """Score a recipe or a checkpoint on a store; what is predicted may be written into the folder `out`."""
        ...


def names(verb: str | None = None) -> list[str]:
    """Tasks, by file name; of one verb only, if it is given. Files are read, not run: one that is broken is listed."""
    found = (module.name for module in pkgutil.iter_modules(tomoglot.tasks.__path__) if not module.ispkg)
    verbs = {name: _verb_of(name) for name in found}
    return sorted(name for name, its in verbs.items() if its is not None and verb in (None, its))


def load(name: str, *, verb: str | None = None) -> Task:
    """The task of a file name, for `verb` if one is given.

    Raises:
        ValueError: no such task (the nearest is named), or it belongs to the other verb.
    """
    if name in names(verb):
        return cast(Task, importlib.import_module(f"tomoglot.tasks.{name}"))
    listed = f"`tomoglot {verb}` knows {', '.join(names(verb)) or 'none'}" if verb else f"known: {', '.join(names())}"
    if name in names():
        raise ValueError(f"{name} is a task of `tomoglot {_verb_of(name)}`; {listed}")
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"did you mean `tomoglot {_verb_of(near[0])} {near[0]}`? " if near else ""
    raise ValueError(f"there is no task {name!r}; {hint}{listed}")


def _verb_of(name: str) -> str | None:
    """The constant `VERB` of a file in this room, or None where it has none."""
    source = Path(tomoglot.tasks.__path__[0], f"{name}.py").read_text(encoding="utf-8")
    found = re.search(r"^VERB\b[^=\n]*=\s*(\S+)", source, flags=re.MULTILINE)
    if found is None:
        return None
    verb = ast.literal_eval(found[1])
    assert verb in get_args(Verb), f"tasks/{name}.py: VERB is {verb!r}"
    return str(verb)


def side_of(split: str) -> str | None:
    """A task's `split` as the store is asked for it: None, every study, for "all"."""
    return None if split == "all" else split


def variant_of(config: Settings, *, task: str = "") -> str:
    """What sets a task's settings apart from its defaults, in a word fit for a file name; "" where nothing does.

    So that the results of two fractions, seeds or splits lie side by side: ``label_fraction_0.1-no_controls``.
    What the name of the `task` says already (``abnormality-finetune``) is not said again.
    """
    shown = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value == field.get_default(call_default_factory=True) or value in task.split("-"):
            continue
        if isinstance(value, bool):
            shown.append(name if value else f"no_{name}")
        elif isinstance(value, int | float | str):
            shown.append(f"{name}_{value}")
        else:
            shown.append(f"{name}_{hashlib.sha256(repr(value).encode()).hexdigest()[:8]}")
    text = "-".join(re.sub(r"[^a-z0-9_.]+", "_", part.lower()) for part in shown)
    return text if len(text) <= NAME_LIMIT else hashlib.sha256(text.encode()).hexdigest()[:16]


class Score(Settings):
    """One number with what is needed to believe it.

    Attributes:
        name: what is scored: a finding, or `macro` for the mean over findings.
        value: the number.
        low: lower end of the 95 % interval, subjects drawn with replacement.
        high: upper end.
        subjects: how many people stand behind it.
        prevalence: share of the scored studies with the finding; the mean over findings for `macro`.
        metric: a name in `metrics.METRICS`.
        arm: `model`, or the control that was scored instead.
        studies: how many studies were scored.
    """

    name: str
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    subjects: int = Field(ge=1)
    prevalence: float = Field(ge=0, le=1)
    metric: str = "auroc"
    arm: str = MODEL
    studies: int | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"{self.name}: the interval {self.low} to {self.high} is upside down")
        return self

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Comparison(Settings):
    """An arm (`of`) minus another on the same drawn subjects. `p_holm` is corrected over the result's comparisons."""

    name: str
    of: str = MODEL
    against: str
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    p: float = Field(gt=0, le=1)
    p_holm: float = Field(gt=0, le=1)
    subjects: int = Field(ge=1)
    metric: str = "auroc"


class SubsetScore(Settings):
    """The score when only some sequences may be read, and how many studies had none of them."""

    sequences: tuple[str, ...]
    score: Score
    left_out: int = Field(ge=0)


class Spread(Settings):
    """The lowest and highest score of single prompt pairs: how much the wording alone moves the number."""

    name: str
    low: FiniteFloat
    high: FiniteFloat
    pairs: int = Field(ge=1)
    metric: str = "auroc"


class Prediction(Settings):
    """What was said of one study: a probability a finding, and the label where it is known.

    `measures` are what was measured of this study alone, such as `whole/dice`.
    """

    study: str
    probabilities: dict[str, float]
    labels: dict[str, float] = Field(default_factory=dict)
    measures: dict[str, float] = Field(default_factory=dict)


class TaskResult(Settings):
    """All that a task found. `notes` say in words what the numbers leave out.

    `settings` are those the task ran with, and `variant` is what sets them apart from its defaults (see `under`).
    """

    task: str
    variant: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    split: str
    model: str = ""
    simulated: bool = False
    subjects: int = Field(ge=0)
    studies: int = Field(ge=0)
    scores: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    subsets: tuple[SubsetScore, ...] = ()
    spreads: tuple[Spread, ...] = ()
    notes: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()

    def score(self, name: str = MACRO, *, metric: str = "auroc", arm: str = MODEL) -> Score:
        """Look up one score.

        Raises:
            ValueError: it was not scored; the names that were are listed.
        """
        for score in self.scores:
            if (score.name, score.metric, score.arm) == (name, metric, arm):
                return score
        known = sorted({f"{score.name}/{score.metric}/{score.arm}" for score in self.scores})
        raise ValueError(f"{self.task} has no score {name}/{metric}/{arm}; it has: {', '.join(known) or 'none'}")

    def headline(self) -> Score:
        """The macro score of the model, or its first score where there is no macro.

        Raises:
            ValueError: nothing could be scored.
        """
        ours = [score for score in self.scores if score.arm == MODEL]
        if not ours:
            raise ValueError(f"{self.task}: nothing could be scored; {' '.join(self.notes)}")
        return next((score for score in ours if score.name == MACRO), ours[0])

    def under(self, config: Settings) -> Self:
        """The same with the settings that the task ran with, which also tell apart where it is saved."""
        return self.but(
            settings=config.model_dump(mode="json", serialize_as_any=True), variant=variant_of(config, task=self.task)
        )

    @property
    def file_stem(self) -> str:
        """Name of the result's files: the task, and the variant where there is one."""
        return re.sub(r"[^a-z0-9_.-]+", "_", "-".join(filter(None, (self.task, self.variant))).lower())

    def save(self, folder: Path) -> Path:
        """Write `<file_stem>.json` and, beside it, `.predictions.jsonl`; return the first. Both are atomic."""
        return save_result(self, folder / f"{self.file_stem}.json")


def save_result(result: TaskResult, path: Path) -> Path:
    """Write a result, and its predictions one a line beside it (`.predictions.jsonl`); return the first path."""
    rows = [json.dumps(row.model_dump(mode="json"), sort_keys=True, allow_nan=False) for row in result.predictions]
    write_bytes(path.with_suffix(".predictions.jsonl"), "".join(row + "\n" for row in rows).encode())
    write_bytes(path, result.but(predictions=()).to_json().encode())
    return path


def load_result(path: Path) -> TaskResult:
    """Read a result with its predictions, as `save_result` wrote them."""
    lines = path.with_suffix(".predictions.jsonl").read_text(encoding="utf-8").splitlines()
    result = TaskResult.from_json(path.read_text(encoding="utf-8"))
    return result.but(predictions=tuple(Prediction(**json.loads(line)) for line in lines))


def write_json(path: Path, value: Any) -> Path:
    """Write JSON atomically, keys sorted; NaN is refused, since other readers do."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())
    return path
