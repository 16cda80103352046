"""From what is said of findings to scores: of each finding or class, by organ, and against the controls.

Where studies of several organs are scored, `normal` is a finding of each organ by itself (`liver normal`): whether a
liver is normal must not be scored by telling livers from brains. Scores by organ are named `liver: macro`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.organ import NORMAL, ORGANS, organ_of
from tomoglot.tasks.scores.intervals import DRAWS, Statistic, macro_auroc, macro_of, paired_test
from tomoglot.tasks.scores.metrics import (
    METRICS,
    accuracy,
    auroc,
    average_precision,
    best_threshold,
    brier,
    calibration_error,
    class_balanced_accuracy,
    class_f1,
    f1,
    prevalence,
)
from tomoglot.tasks.scores.scoring import (
    Truth,
    holm_comparisons,
    list_predictions,
    score_arm,
    score_statistics,
    unscored_note,
)
from tomoglot.tasks.task import MACRO, MODEL, Comparison, Score, TaskResult

Form = Literal["multi_label", "one_of"]
Said = NDArray[np.floating]
# What is asked of a call, not of a probability.
CALLED = frozenset({"balanced_accuracy", "f1"})


def result_of(
    predicted: Mapping[str, Said],
    truth: Truth,
    *,
    task: str,
    form: Form = "multi_label",
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> TaskResult:
    """Scores of each arm's probabilities (n, f) and tests of the model (the arm `model`) against every other.

    Without `thresholds`, by arm and finding, what is 0.5 or more is called present, and only AUROC has a macro row.
    """
    split = {name: split_normal(given, truth) for name, given in predicted.items()}
    given = {name: said for name, (said, _) in split.items()}
    truth = split[MODEL][1]
    others = {name: said for name, said in given.items() if name != MODEL}
    chance = {"draws": draws, "seed": seed}
    table: list[Score] = []
    for name, said in given.items():
        if form == "one_of":
            table += score_classes(said, truth, arm=name, **chance)
        elif thresholds is not None:
            table += score_findings(said, truth, thresholds=thresholds.get(name, {}), arm=name, **chance)
        else:
            table += score_arm(said, truth, arm=name, metrics=tuple(METRICS) if name == MODEL else ("auroc",), **chance)
    parts = by_organ(truth) if form == "multi_label" else {}
    for organ, (rows, part) in parts.items():
        for name, said in given.items():
            table += _macro(said[rows][:, _at(part, truth)], part, name=f"{organ}: {MACRO}", arm=name, **chance)
    return TaskResult(
        task=task,
        split="",
        subjects=len(np.unique(truth.subjects)),
        studies=len(truth.studies),
        scores=tuple(table),
        comparisons=_compare(given[MODEL], others, truth, parts, **chance),
        notes=unscored_note(truth),
        predictions=list_predictions(given[MODEL], truth),
    )


def organs_of(truth: Truth) -> NDArray[np.str_]:
    """The organ of each study (n,), from the findings that are known of it."""
    found = [organ_of(name for name, known in zip(truth.findings, row, strict=True) if known) for row in truth.labelled]
    return np.array(found, dtype=str)


def split_normal(given: Said, truth: Truth) -> tuple[Said, Truth]:
    """`normal` as a column an organ, each known in the studies of that organ alone; nothing else with one organ."""
    if NORMAL not in truth.findings:
        return given, truth
    at, organs = truth.findings.index(NORMAL), organs_of(truth)
    names = sorted(set(organs[truth.labelled[:, at]].tolist()))
    if len(names) < 2:
        return given, truth
    others = [column for column in range(len(truth.findings)) if column != at]
    columns = [*others, *([at] * len(names))]
    labelled = truth.labelled[:, columns].copy()
    for place, organ in enumerate(names, start=len(others)):
        labelled[:, place] &= organs == organ
    split = Truth(
        labels=truth.labels[:, columns],
        labelled=labelled,
        subjects=truth.subjects,
        findings=(*(truth.findings[column] for column in others), *(f"{organ} {NORMAL}" for organ in names)),
        studies=truth.studies,
    )
    return given[:, columns], split


def by_organ(truth: Truth) -> dict[str, tuple[NDArray[np.bool_], Truth]]:
    """Which studies are of an organ, and what is known of its findings there; nothing where there is one organ."""
    organs = organs_of(truth)
    # A study of which nothing is known is of no organ.
    names = sorted(set(organs[truth.labelled.any(axis=1)].tolist()))
    if len(names) < 2:
        return {}
    found = {}
    for organ in names:
        rows = organs == organ
        known = truth.labelled[rows].any(axis=0)
        own = {*ORGANS.get(organ, truth.findings), f"{organ} {NORMAL}"}
        asked = [name for name, its in zip(truth.findings, known, strict=True) if its and name in own]
        if asked:
            found[organ] = rows, truth.rows(rows).columns(asked)
    return found


def choose_thresholds(given: Said, truth: Truth) -> dict[str, float]:
    """For each finding the probability with the best balanced accuracy; left out where a class lacks.

    To be asked of the val split, and used on another.
    """
    given, truth = split_normal(given, truth)
    found = {}
    for at, name in enumerate(truth.findings):
        rows = truth.labelled[:, at]
        threshold = best_threshold(given[rows, at], truth.labels[rows, at]) if rows.any() else None
        if threshold is not None:
            found[name] = threshold
    return found


def score_findings(
    given: Said, truth: Truth, *, thresholds: Mapping[str, float], arm: str = MODEL, draws: int = DRAWS, seed: int = 0
) -> list[Score]:
    """Every metric, macro and of each finding; a finding without a threshold is called present at 0.5."""
    called = _called(given, truth, thresholds)
    scores: list[Score] = []
    add = partial(score_statistics, arm=arm, draws=draws, seed=seed)
    if not truth.scorable:
        return scores
    part = truth.columns(truth.scorable)
    at = _at(part, truth)
    macro: dict[str, Statistic] = {
        name: macro_of(metric, (called if name in CALLED else given)[:, at], part.labels, part.labelled)
        for name, metric in METRICS.items()
    }
    scores += add(MACRO, macro, truth.subjects, prevalence=truth.mean_prevalence())
    for finding in truth.scorable:
        column = truth.findings.index(finding)
        rows = truth.labelled[:, column]
        labels = truth.labels[rows, column]
        single: dict[str, Statistic] = {
            name: partial(metric, (called if name in CALLED else given)[rows, column], labels)
            for name, metric in METRICS.items()
        }
        scores += add(finding, single, truth.subjects[rows], prevalence=prevalence(labels))
    return scores


def score_classes(given: Said, truth: Truth, *, arm: str = MODEL, draws: int = DRAWS, seed: int = 0) -> list[Score]:
    """Of classes that exclude each other (n, k): macro, and of each class against the rest.

    The Brier score is the mean over classes. The calibration error is of the probability of the class that is called.
    """
    called, true = given.argmax(axis=1), truth.labels.argmax(axis=1)
    right = (called == true).astype(np.float64)
    add = partial(score_statistics, subjects=truth.subjects, arm=arm, draws=draws, seed=seed)
    macro: dict[str, Statistic] = {
        "auroc": macro_auroc(given, truth.labels),
        "average_precision": macro_of(average_precision, given, truth.labels),
        "accuracy": partial(accuracy, called, true),
        "balanced_accuracy": partial(class_balanced_accuracy, called, true),
        "f1": partial(class_f1, called, true),
        "brier": macro_of(brier, given, truth.labels),
        "calibration_error": partial(calibration_error, given.max(axis=1), right),
    }
    scores = add(MACRO, macro, prevalence=truth.mean_prevalence()) if truth.scorable else []
    for at, name in enumerate(truth.findings):
        labels = truth.labels[:, at]
        if labels.min() < labels.max():
            single: dict[str, Statistic] = {
                "auroc": partial(auroc, given[:, at], labels),
                "average_precision": partial(average_precision, given[:, at], labels),
                "f1": partial(f1, (called == at).astype(np.float64), labels),
            }
            scores += add(name, single, prevalence=prevalence(labels))
    return scores


def _called(given: Said, truth: Truth, thresholds: Mapping[str, float]) -> NDArray[np.float64]:
    at = np.array([thresholds.get(name, 0.5) for name in truth.findings])
    return (given >= at).astype(np.float64)


def _at(part: Truth, truth: Truth) -> list[int]:
    return [truth.findings.index(name) for name in part.findings]


def _macro(given: Said, truth: Truth, *, name: str, arm: str, draws: int, seed: int) -> list[Score]:
    if not truth.scorable:
        return []
    statistics: dict[str, Statistic] = {
        "auroc": macro_auroc(given, truth.labels, truth.labelled),
        "average_precision": macro_of(average_precision, given, truth.labels, truth.labelled),
    }
    return score_statistics(
        name, statistics, truth.subjects, prevalence=truth.mean_prevalence(), arm=arm, draws=draws, seed=seed
    )


def _compare(
    ours: Said,
    others: Mapping[str, Said],
    truth: Truth,
    parts: Mapping[str, tuple[NDArray[np.bool_], Truth]],
    *,
    draws: int,
    seed: int,
) -> tuple[Comparison, ...]:
    """Paired tests of the macro AUROC, over all and by organ, corrected over all of them by Holm."""
    everything = np.ones(len(truth.studies), dtype=bool)
    asked = {MACRO: (everything, truth), **{f"{organ}: {MACRO}": part for organ, part in parts.items()}}
    tests = []
    for name, (rows, part) in asked.items():
        if not part.scorable:
            continue
        at, people = _at(part, truth), len(np.unique(part.subjects))
        first = macro_auroc(ours[rows][:, at], part.labels, part.labelled)
        for against, other in others.items():
            second = macro_auroc(other[rows][:, at], part.labels, part.labelled)
            test = paired_test(first, second, part.subjects, draws=draws, seed=seed)
            tests.append((name, "auroc", against, people, test))
    return holm_comparisons(tests)
