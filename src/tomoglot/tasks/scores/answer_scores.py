"""How right answers are: the same words, or words in common; and what can be answered without looking at a study.

A row is one question. Subjects are drawn for the intervals, with all their questions: eight answers about one study are
no eight studies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.questions import YES_NO, Question
from tomoglot.tasks.scores.intervals import DRAWS, Statistic, paired_test
from tomoglot.tasks.scores.metrics import auroc
from tomoglot.tasks.scores.regions import mean_statistic
from tomoglot.tasks.scores.scoring import holm_comparisons, score_statistics
from tomoglot.tasks.task import MODEL, Comparison, Score

ALL, KIND = "all questions", "kind: {}"
ACCURACY, TOKEN_F1, AUROC = "accuracy", "token_f1", "auroc"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Marked:
    """What one arm answered, question by question: (n,) right or wrong, share of words in common, and where it can say
    so, its probability of yes against no (NaN elsewhere).
    """

    right: NDArray[np.float64]
    overlap: NDArray[np.float64]
    yes: NDArray[np.float64] | None = None


def mark(answers: Sequence[str], questions: Sequence[Question], *, yes: NDArray[np.float64] | None = None) -> Marked:
    """Mark answers, one a question."""
    pairs = [(given, question.answer) for given, question in zip(answers, questions, strict=True)]
    return Marked(
        right=np.array([float(given == true) for given, true in pairs]),
        overlap=np.array([token_f1(given, true) for given, true in pairs]),
        yes=yes,
    )


def token_f1(given: str, true: str) -> float:
    """Harmonic mean of the shares of the words of each answer that the other has (Rajpurkar 2016, sec. 6.1)."""
    words, wanted = Counter(given.split()), Counter(true.split())
    both = (words & wanted).total()
    return 2 * both / (words.total() + wanted.total()) if both else 0.0


def usual_answers(taught: Iterable[Question], asked: Sequence[Question]) -> list[str]:
    """The most usual answer in training to the same words; to a question never put so, to its kind, or of its form."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question in taught:
        for group in _groups(question):
            counts[group][question.answer] += 1

    def usual(question: Question) -> str:
        known = next(counts[group] for group in _groups(question) if group in counts)
        # Of equals the first of the alphabet, not whichever came first.
        return min(known, key=lambda answer: (-known[answer], answer))

    return [usual(question) for question in asked]


def chance(taught: Iterable[Question], asked: Sequence[Question]) -> Marked:
    """What drawing among the answers that training gave to the kind, each alike, is right on average."""
    pools: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for question in taught:
        for group in _groups(question):
            pools[group].add(question.answer)
    right, overlap = [], []
    for question in asked:
        pool = next(pools[group] for group in _groups(question)[1:] if group in pools)
        right.append(float(np.mean([answer == question.answer for answer in pool])))
        overlap.append(float(np.mean([token_f1(answer, question.answer) for answer in pool])))
    return Marked(right=np.array(right), overlap=np.array(overlap))


def score_answers(
    marked: Mapping[str, Marked],
    questions: Sequence[Question],
    *,
    subjects: NDArray[np.int64],
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[list[Score], tuple[Comparison, ...]]:
    """Accuracy of all, of closed and open questions and of each kind, and F1 of open ones; the model against each arm.

    A score's `prevalence` is the share of its questions that have the most usual answer among them. Tests are of all,
    closed and open questions, corrected over all of them.
    """
    scores: list[Score] = []
    tests = []
    studies = np.unique([f"{question.subject} {question.study}" for question in questions], return_inverse=True)[1]
    for name, rows in _parts(questions).items():
        for metric in _metrics(name):
            for arm, its in marked.items():
                statistic, kept = _statistic(its, metric, rows, questions)
                if statistic is None:
                    continue
                usual = Counter(questions[row].answer for row in kept).most_common(1)[0][1] / len(kept)
                found = score_statistics(
                    name, {metric: statistic}, subjects[kept], prevalence=usual, arm=arm, draws=draws, seed=seed
                )
                scores += [score.but(studies=len(np.unique(studies[kept]))) for score in found]
                if arm != MODEL and not name.startswith(KIND.format("")) and metric != AUROC:
                    ours, _ = _statistic(marked[MODEL], metric, rows, questions)
                    assert ours is not None
                    test = paired_test(ours, statistic, subjects[kept], draws=draws, seed=seed)
                    tests.append((name, metric, arm, len(np.unique(subjects[kept])), test))
    return scores, holm_comparisons(tests)


def _groups(question: Question) -> tuple[tuple[str, ...], ...]:
    """From the question's own words to nothing: what it has in common with others."""
    return (question.question.casefold(), "words"), (question.kind, question.form), (question.form,), ()


def _parts(questions: Sequence[Question]) -> dict[str, NDArray[np.int64]]:
    """Rows that are scored together; a part without a row is left out."""
    forms = np.array([question.form for question in questions])
    kinds = np.array([question.kind for question in questions])
    parts = {ALL: np.ones(len(questions), dtype=bool), "closed": forms == "closed", "open": forms == "open"}
    parts |= {KIND.format(kind): kinds == kind for kind in sorted(set(kinds))}
    return {name: np.flatnonzero(its) for name, its in parts.items() if its.any()}


def _metrics(part: str) -> tuple[str, ...]:
    return {"closed": (ACCURACY, AUROC), "open": (ACCURACY, TOKEN_F1)}.get(part, (ACCURACY,))


def _statistic(
    marked: Marked, metric: str, rows: NDArray[np.int64], questions: Sequence[Question]
) -> tuple[Statistic | None, NDArray[np.int64]]:
    """The metric of these rows as a statistic, and the rows that it is of."""
    if metric != AUROC:
        values = marked.right if metric == ACCURACY else marked.overlap
        return mean_statistic(values[rows, None]), rows
    kept = rows[[questions[row].answer in YES_NO for row in rows]]
    if marked.yes is None or not len(kept):
        return None, kept
    given, true = marked.yes[kept], np.array([float(questions[row].answer == "yes") for row in kept])
    return lambda weights: auroc(given, true, weights), kept
