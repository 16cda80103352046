"""From probabilities to a task's numbers: scores with intervals, and paired tests against the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomoglot.batches.batch import Batch
from tomoglot.tasks.embeddings import StoreEmbeddings
from tomoglot.tasks.scores.intervals import (
    DRAWS,
    Interval,
    PairedTest,
    Statistic,
    draw_subjects,
    holm,
    interval,
    macro_auroc,
    over_draws,
    paired_test,
    percentile_interval,
)
from tomoglot.tasks.scores.metrics import METRICS, prevalence
from tomoglot.tasks.task import MACRO, MODEL, Comparison, Prediction, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is known of n studies: labels (n, f), where they are known, and whose studies they are."""

    labels: NDArray[np.floating]
    labelled: NDArray[np.bool_]
    subjects: NDArray[np.int64]
    findings: tuple[str, ...]
    studies: tuple[str, ...]

    def rows(self, keep: NDArray[np.bool_]) -> Truth:
        """The kept studies."""
        return Truth(
            labels=self.labels[keep],
            labelled=self.labelled[keep],
            subjects=self.subjects[keep],
            findings=self.findings,
            studies=tuple(np.array(self.studies, dtype=object)[keep]),
        )

    def columns(self, findings: Sequence[str]) -> Truth:
        """The findings asked for, in that order."""
        at = [self.findings.index(finding) for finding in findings]
        return Truth(
            labels=self.labels[:, at],
            labelled=self.labelled[:, at],
            subjects=self.subjects,
            findings=tuple(findings),
            studies=self.studies,
        )

    @property
    def scorable(self) -> tuple[str, ...]:
        """Findings that some study has and some study has not."""
        kept = []
        for at, finding in enumerate(self.findings):
            known = self.labels[self.labelled[:, at], at]
            if known.size and known.min() < 0.5 < known.max():
                kept.append(finding)
        return tuple(kept)

    def mean_prevalence(self) -> float:
        """Mean over the scorable findings of the share of studies that have it."""
        shares = [prevalence(self._known(finding)) for finding in self.scorable]
        return float(np.mean(shares)) if shares else float("nan")

    def _known(self, finding: str) -> NDArray[np.floating]:
        at = self.findings.index(finding)
        return self.labels[self.labelled[:, at], at]


def score_arm(
    probabilities: NDArray[np.floating],
    truth: Truth,
    *,
    arm: str = MODEL,
    metrics: Sequence[str] = ("auroc",),
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Score]:
    """Macro AUROC, then each metric of each finding that has both classes; probabilities are (n, f) as in `truth`."""
    scores: list[Score] = []
    macro = score_macro(probabilities, truth, arm=arm, draws=draws, seed=seed)
    if macro is not None:
        scores.append(macro)
    for finding in truth.scorable:
        at = truth.findings.index(finding)
        rows = truth.labelled[:, at]
        given, labels, subjects = probabilities[rows, at], truth.labels[rows, at], truth.subjects[rows]
        statistics = {name: _metric_statistic(name, given, labels) for name in metrics}
        scores += score_statistics(
            finding, statistics, subjects, prevalence=prevalence(labels), arm=arm, draws=draws, seed=seed
        )
    return scores


def score_statistics(
    name: str,
    statistics: Mapping[str, Statistic],
    subjects: NDArray[np.int64],
    *,
    prevalence: float,
    arm: str = MODEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Score]:
    """One score a metric, over the same drawn subjects; what no draw can score is left out."""
    weights = draw_subjects(subjects, draws=draws, seed=seed)
    scores = []
    for metric, statistic in statistics.items():
        value = float(statistic(np.ones((1, len(subjects))))[0])
        bounds = percentile_interval(value, over_draws(statistic, weights))
        if bounds.draws:
            scores.append(
                Score(
                    name=name,
                    value=value,
                    low=bounds.low,
                    high=bounds.high,
                    subjects=len(np.unique(subjects)),
                    studies=len(subjects),
                    prevalence=prevalence,
                    metric=metric,
                    arm=arm,
                )
            )
    return scores


def score_macro(
    probabilities: NDArray[np.floating], truth: Truth, *, arm: str = MODEL, draws: int = DRAWS, seed: int = 0
) -> Score | None:
    """The mean AUROC over findings with its interval, or None where no finding has both classes."""
    bounds = interval(macro_auroc(probabilities, truth.labels, truth.labelled), truth.subjects, draws=draws, seed=seed)
    return macro_score(bounds, truth, arm=arm) if bounds.draws else None


def macro_score(bounds: Interval, truth: Truth, *, arm: str = MODEL) -> Score:
    """A macro AUROC and its interval as a score of these studies."""
    return Score(
        name=MACRO,
        value=bounds.value,
        low=bounds.low,
        high=bounds.high,
        subjects=len(np.unique(truth.subjects)),
        studies=len(truth.studies),
        prevalence=truth.mean_prevalence(),
        arm=arm,
    )


def compare_with_controls(
    model: NDArray[np.floating],
    controls: Mapping[str, NDArray[np.floating]],
    truth: Truth,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Paired tests of the macro AUROC against each control, corrected over the controls by Holm."""
    if not truth.scorable:
        return ()
    ours = macro_auroc(model, truth.labels, truth.labelled)
    people = len(np.unique(truth.subjects))
    tests = [
        (MACRO, "auroc", name, people, paired_test(ours, statistic, truth.subjects, draws=draws, seed=seed))
        for name, other in controls.items()
        for statistic in (macro_auroc(other, truth.labels, truth.labelled),)
    ]
    return holm_comparisons(tests)


def holm_comparisons(tests: Sequence[tuple[str, str, str, int, PairedTest]]) -> tuple[Comparison, ...]:
    """Paired tests as comparisons, their p values corrected over all of them by Holm.

    A test is (name, metric, against, subjects, what was found); one that no draw could score is corrected for, and
    not listed.
    """
    corrected = holm([test.p for *_, test in tests])
    return tuple(
        Comparison(
            name=name,
            against=against,
            value=test.value,
            low=test.low,
            high=test.high,
            p=test.p,
            p_holm=p_holm,
            subjects=people,
            metric=metric,
        )
        for (name, metric, against, people, test), p_holm in zip(tests, corrected, strict=True)
        if test.draws
    )


def read_studies(
    batches: Iterable[Batch], predict: Callable[[Batch], Tensor], *, findings: tuple[str, ...], blind: bool = False
) -> tuple[NDArray[np.float64], Truth]:
    """What a network says of every study, in order (n, e), and what is known of them.

    `blind` removes the image: volumes are zeros and what was acquired stays known.
    """
    given, known = [], []
    with torch.inference_mode():
        for batch in batches:
            shown = replace(batch, volumes=torch.zeros_like(batch.volumes)) if blind else batch
            given.append(predict(shown).double().cpu().numpy())
            known.append((batch.labels.numpy(), batch.labelled.numpy(), batch.subjects.numpy(), batch.studies))
    labels, labelled, subjects, studies = zip(*known, strict=True)
    truth = Truth(
        labels=np.concatenate(labels),
        labelled=np.concatenate(labelled),
        subjects=np.concatenate(subjects),
        findings=findings,
        studies=tuple(study for part in studies for study in part),
    )
    return np.concatenate(given), truth


def list_predictions(probabilities: NDArray[np.floating], truth: Truth) -> tuple[Prediction, ...]:
    """One row a study: a probability a finding, and the labels that are known."""
    return tuple(
        Prediction(
            study=study,
            probabilities={name: float(probabilities[row, at]) for at, name in enumerate(truth.findings)},
            labels={
                name: float(truth.labels[row, at]) for at, name in enumerate(truth.findings) if truth.labelled[row, at]
            },
        )
        for row, study in enumerate(truth.studies)
    )


def truth_of(embeddings: StoreEmbeddings) -> Truth:
    """What is known of the embedded studies."""
    return Truth(
        labels=embeddings.labels,
        labelled=embeddings.labelled,
        subjects=embeddings.subjects,
        findings=embeddings.findings,
        studies=embeddings.studies,
    )


def unscored_note(truth: Truth) -> tuple[str, ...]:
    """Say which findings have no score, because the split holds one class of them or no label."""
    left = [finding for finding in truth.findings if finding not in truth.scorable]
    if not left:
        return ()
    return (f"Not scored, since the split does not hold both classes: {', '.join(left)}.",)


def _metric_statistic(name: str, scores: NDArray[np.floating], labels: NDArray[np.floating]) -> Statistic:
    metric = METRICS[name]
    return lambda weights: metric(scores, labels, weights)
