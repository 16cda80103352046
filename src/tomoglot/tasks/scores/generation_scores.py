"""Scores of written reports: what they say of each finding, as a rule-based labeller reads it, and their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.report import report_body
from tomoglot.tasks.scores.intervals import DRAWS, Statistic, paired_test
from tomoglot.tasks.scores.regions import mean_statistic
from tomoglot.tasks.scores.scoring import holm_comparisons, score_statistics
from tomoglot.tasks.scores.text_scores import (
    MINED_NOTE,
    clinical_f1,
    corpus_bleu,
    distinct_share,
    present_in,
    score_texts,
)
from tomoglot.tasks.task import MACRO, MODEL, Prediction, Score, TaskResult

CLINICAL, MICRO, WHOLE = "clinical_f1", "micro", "whole report"


def generation_result(
    written: Mapping[str, Sequence[str]],
    true: Sequence[str],
    *,
    findings: Sequence[str],
    subjects: NDArray[np.int64],
    studies: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> TaskResult:
    """Score the reports that each arm wrote (the arm `model` against every other) beside the true ones."""
    references = [_one_line(report) for report in true]
    bodies = {arm: [_one_line(report) for report in reports] for arm, reports in written.items()}
    tables = {arm: score_texts(texts, references) for arm, texts in bodies.items()}
    # Rules read each text once: with a reading for every score, they took longer than the writing.
    truth, said = present_in(references, findings), {arm: present_in(its, findings) for arm, its in bodies.items()}
    shares = truth.mean(axis=0)
    scores: list[Score] = []
    tests = []
    people = len(np.unique(subjects))
    statistics = {arm: _statistics(texts, references, tables[arm], said[arm], truth) for arm, texts in bodies.items()}
    ours = statistics[MODEL]
    for arm, asked in statistics.items():
        add = partial(score_statistics, subjects=subjects, arm=arm, draws=draws, seed=seed)
        for (name, metric), statistic in asked.items():
            scores += add(name, {metric: statistic}, prevalence=float(shares.mean()))
            if arm != MODEL and name != MICRO:
                test = paired_test(ours[name, metric], statistic, subjects, draws=draws, seed=seed)
                tests.append((name, metric, arm, people, test))
        for at, (name, share) in enumerate(zip(findings, shares.tolist(), strict=True)):
            alone = {CLINICAL: clinical_f1(said[arm][:, [at]], truth[:, [at]])}
            scores += add(name, alone, prevalence=share) if arm == MODEL and share > 0 else []
    distinct = {arm: f"{distinct_share(texts):.3f}" for arm, texts in {**bodies, "true": references}.items()}
    return TaskResult(
        task="report_generation",
        split="",
        subjects=people,
        studies=len(true),
        scores=tuple(scores),
        comparisons=holm_comparisons(tests),
        notes=(
            f"{MINED_NOTE} Findings: {', '.join(findings)}.",
            f"Share of reports that differ: {', '.join(f'{arm} {share}' for arm, share in distinct.items())}.",
        ),
        predictions=_predictions(said[MODEL], truth, tables[MODEL], findings, studies),
    )


def _statistics(
    texts: Sequence[str],
    references: Sequence[str],
    table: Mapping[str, NDArray[np.float64]],
    called: NDArray[np.float64],
    true: NDArray[np.float64],
) -> dict[tuple[str, str], Statistic]:
    """What is scored of an arm, by name and metric: F1 of findings, BLEU over all reports, means of the others."""
    return {
        (MACRO, CLINICAL): clinical_f1(called, true),
        (MICRO, CLINICAL): clinical_f1(called, true, average="micro"),
        (WHOLE, "corpus_bleu4"): corpus_bleu(texts, references),
        **{(WHOLE, name): mean_statistic(table[name][:, None]) for name in ("rouge_l", "meteor")},
    }


def _predictions(
    called: NDArray[np.float64],
    true: NDArray[np.float64],
    table: Mapping[str, NDArray[np.float64]],
    findings: Sequence[str],
    studies: Sequence[str],
) -> tuple[Prediction, ...]:
    """What was written and what is true of each finding, and the measures of words; no text."""
    return tuple(
        Prediction(
            study=study,
            probabilities=dict(zip(findings, called[at].tolist(), strict=True)),
            labels=dict(zip(findings, true[at].tolist(), strict=True)),
            measures={f"{WHOLE}/{name}": float(values[at]) for name, values in table.items()},
        )
        for at, study in enumerate(studies)
    )


def _one_line(report: str) -> str:
    return " ".join(report_body(report).split())
