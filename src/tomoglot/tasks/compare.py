"""Several pre-trained models on one task, at several shares of the labels: same budget, same subjects, tested in pairs.

A single fine-tuning says little: what is drawn at its start moves a score as much as pre-training does. So every arm is
trained once a seed, its score is the mean over seeds, and arms are compared on the same drawn subjects. The interval
covers which subjects were scored; the values of single seeds stand beside it and show what training itself varies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.batches.loader import StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import from_scratch, is_simulated
from tomoglot.tasks.intervals import DRAWS, Statistic, interval, macro_auroc, paired_test
from tomoglot.tasks.regions import mean_statistic
from tomoglot.tasks.scoring import holm_comparisons
from tomoglot.tasks.task import SCRATCH, Comparison, Prediction, Score, TaskResult, load

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trained:
    """One arm at one share of the labels: the values of the seeds, and their mean as a statistic of the subjects."""

    arm: str
    fraction: float
    metric: str
    values: tuple[float, ...]
    statistic: Statistic
    subjects: NDArray[np.generic]
    prevalence: float


def compare_pretraining(
    models: Mapping[str, Recipe | Loaded],
    store: StudySource,
    task: str,
    config: Settings | None = None,
    *,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    measure: str = "dice",
    draws: int = DRAWS,
    progress: Report | None = None,
) -> TaskResult:
    """Score every model, and the first one's network from scratch, at every share of the labels.

    Args:
        models: a name and a checkpoint each; all are compared with the first, which is also what `from scratch` copies.
        store: what is learned from and scored.
        task: one of the verb `transfer`.
        config: its settings, None for the defaults; `seed`, `label_fraction` and `controls` are set here.
        fractions: shares of the training subjects that keep their labels.
        seeds: one training each. Subjects that keep labels differ from seed to seed too.
        measure: what is averaged where the task measures studies one by one, such as `dice`; AUROC elsewhere.
        draws: of the bootstrap.
        progress: told how many trainings are done.

    Raises:
        ValueError: no model, no fraction or no seed, or `task` is no task of `transfer`,
            `measure` is none of its measures, or the scored studies hold one class only.
    """
    if not (models and fractions and seeds):
        raise ValueError("a comparison needs at least one model, one label fraction and one seed")
    found_task = load(task, verb="transfer")
    config = found_task.Config() if config is None else config
    first = next(iter(models.values()))
    start = first.recipe if isinstance(first, Loaded) else first
    names = (*models, SCRATCH)
    rows: list[_Trained] = []
    for fraction in fractions:
        for name in names:
            found = []
            for seed in seeds:
                model = from_scratch(start, seed=seed) if name == SCRATCH else models[name]
                job = config.but(seed=seed, label_fraction=fraction, controls=False)
                found.append(found_task.score(model, store, job).predictions)
                _metric(found[-1], measure)  # A wrong name is said after one training, not after all.
                if progress is not None:
                    progress(len(rows) * len(seeds) + len(found), len(names) * len(fractions) * len(seeds))
            rows.append(_trained(name, fraction, found, store, measure))
    split = str(getattr(config, "split", "test"))
    return TaskResult(
        task=f"compare-{task}",
        split=split,
        model=", ".join(models),
        simulated=is_simulated(store, split),
        subjects=len(np.unique(rows[0].subjects)),
        studies=len(rows[0].subjects),
        scores=tuple(_score(row, draws) for row in rows),
        comparisons=_compare(rows, names[0], draws),
        notes=tuple(_seed_note(row, seeds) for row in rows),
    )


def _trained(
    arm: str, fraction: float, found: Sequence[tuple[Prediction, ...]], store: StudySource, measure: str
) -> _Trained:
    """The mean over seeds of a macro score; every seed scored the same studies."""
    people = {row.key: row.subject for row in store.rows}
    studies = [prediction.study for prediction in found[0]]
    assert all([p.study for p in predictions] == studies for predictions in found), "seeds scored other studies"
    metric = _metric(found[0], measure)
    statistics = [_statistic(predictions, metric) for predictions in found]
    subjects = np.unique([people[study] for study in studies], return_inverse=True)[1]
    everybody = np.ones((1, len(studies)))
    positive = [np.mean([p.labels.get(name, 0.0) for p in found[0]]) for name in sorted(found[0][0].labels)]
    return _Trained(
        arm=arm,
        fraction=fraction,
        metric=metric,
        values=tuple(float(statistic(everybody)[0]) for statistic in statistics),
        statistic=lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0),
        subjects=subjects,
        prevalence=float(np.mean(positive)) if positive else 0.0,
    )


def _metric(predictions: Sequence[Prediction], measure: str) -> str:
    """`measure` where the task measures studies one by one, else AUROC: no score may bear another's name.

    Raises:
        ValueError: the task has measures, and this is none of them.
    """
    known = sorted({key.rpartition("/")[2] for p in predictions for key in p.measures})
    if known and measure not in known:
        raise ValueError(f"measure {measure!r} is none of this task's: {', '.join(known)}")
    return measure if known else "auroc"


def _statistic(predictions: Sequence[Prediction], metric: str) -> Statistic:
    """Mean over regions of a measure's mean over studies, or the macro AUROC of the probabilities."""
    if metric != "auroc":
        names = sorted({key for p in predictions for key in p.measures if key.rpartition("/")[2] == metric})
        return mean_statistic(np.array([[p.measures.get(name, np.nan) for name in names] for p in predictions]))
    findings = sorted({name for p in predictions for name in p.probabilities})
    given = np.array([[p.probabilities.get(name, np.nan) for name in findings] for p in predictions])
    labels = np.array([[p.labels.get(name, 0.0) for name in findings] for p in predictions])
    known = np.array([[name in p.labels for name in findings] for p in predictions])
    return macro_auroc(given, labels, known)


def _title(row: _Trained) -> str:
    return f"macro, {100 * row.fraction:g} % of the labels"


def _score(row: _Trained, draws: int) -> Score:
    bounds = interval(row.statistic, row.subjects, draws=draws)
    if not bounds.draws:
        raise ValueError(
            f"{row.metric} cannot be scored on these {len(row.subjects)} studies: they hold no region, or of every "
            "finding one class only; score another split, or more subjects"
        )
    return Score(
        name=_title(row),
        value=bounds.value,
        low=bounds.low,
        high=bounds.high,
        subjects=len(np.unique(row.subjects)),
        prevalence=row.prevalence,
        metric=row.metric,
        arm=row.arm,
        studies=len(row.subjects),
    )


def _compare(rows: Sequence[_Trained], ours: str, draws: int) -> tuple[Comparison, ...]:
    """The first model minus every other arm at the same share of the labels; Holm over all of them."""
    own = {row.fraction: row for row in rows if row.arm == ours}
    others = [row for row in rows if row.arm != ours]
    tests = []
    for row in others:
        test = paired_test(own[row.fraction].statistic, row.statistic, row.subjects, draws=draws)
        tests.append((_title(row), row.metric, row.arm, len(np.unique(row.subjects)), test))
    return holm_comparisons(tests)


def _seed_note(row: _Trained, seeds: Sequence[int]) -> str:
    each = ", ".join(f"{value:.3f}" for value in row.values)
    return f"{row.arm}, {100 * row.fraction:g} % of the labels: {each} (seeds {', '.join(map(str, seeds))})."
