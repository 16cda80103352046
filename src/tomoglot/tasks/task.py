"""What crosses from tasks to the report: scores that cannot be bare numbers, comparisons, and predictions.

A score has an interval, the number of subjects behind it and the prevalence; building one without them fails. A task's
result holds its scores, the paired comparisons with its controls, and what was predicted for each study.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, FiniteFloat, model_validator

from tomoglot.config import Settings
from tomoglot.studies.atomic import write_bytes

MODEL = "model"
SCRATCH = "from scratch"
IMAGE_REMOVED = "image removed"
MACRO = "macro"


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
    """The model minus a control on the same drawn subjects. `p_holm` is corrected over the result's comparisons."""

    name: str
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
    """What was said of one study: a probability a finding, and the label where it is known."""

    study: str
    probabilities: dict[str, float]
    labels: dict[str, float] = Field(default_factory=dict)


class TaskResult(Settings):
    """All that a task found. `notes` say in words what the numbers leave out."""

    task: str
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

    def save(self, folder: Path) -> Path:
        """Write `<task>.json` and, beside it, `<task>.predictions.jsonl`; return the first. Both are atomic."""
        return save_result(self, folder / f"{re.sub(r'[^a-z0-9_.-]+', '_', self.task.lower())}.json")


def save_result(result: TaskResult, path: Path) -> Path:
    """Write a result, and its predictions one a line beside it (`.predictions.jsonl`); return the first path."""
    rows = [json.dumps(row.model_dump(mode="json"), sort_keys=True, allow_nan=False) for row in result.predictions]
    write_bytes(path.with_suffix(".predictions.jsonl"), "".join(row + "\n" for row in rows).encode())
    write_bytes(path, result.but(predictions=()).to_json().encode())
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write JSON atomically, keys sorted; NaN is refused, since other readers do."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())
    return path
