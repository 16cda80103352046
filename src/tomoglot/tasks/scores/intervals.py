"""How sure a number is: subject-level bootstrap intervals, paired tests and Holm's correction.

A statistic is a function of weights: it takes an array (draws, rows), where an entry says how often a row was drawn,
and gives one number a draw. Written so, two thousand draws cost a few array operations and no copy of the data. NaN
means that a draw cannot be scored (it holds one class only); such draws are left out of the interval and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.tasks.scores.metrics import Metric, auroc

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

DRAWS = 2000
LEVEL = 0.95
# Weights of one block of draws: 4 million numbers are 32 MB, and a statistic holds a handful of such arrays.
BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A statistic, its percentile interval, and how many draws could be scored."""

    value: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """A difference of two statistics over the same draws, its interval and a two-sided p value."""

    value: float
    low: float
    high: float
    p: float
    draws: int


def draw_subjects(subjects: NDArray[np.generic], *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """How often each row is drawn when subjects are drawn with replacement: (draws, rows).

    Every row of a subject gets the same count. The result is a function of the subjects, `draws` and `seed` only.

    Raises:
        ValueError: there is no row.
    """
    if len(subjects) == 0:
        raise ValueError("there is no study to draw from; choose a split that holds at least one")
    # Subjects are drawn, not studies: two studies of one subject agree, and the interval would be too narrow.
    distinct, member = np.unique(subjects, return_inverse=True)
    count = len(distinct)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return times[:, member].astype(np.float64)


def over_draws(statistic: Statistic, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a statistic to every draw, in blocks that bound the memory."""
    step = max(1, BLOCK_CELLS // max(1, weights.shape[1]))
    return np.concatenate([statistic(weights[at : at + step]) for at in range(0, len(weights), step)])


def percentile_interval(value: float, drawn: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """The percentile interval of the draws that could be scored; NaN bounds where none could."""
    scored = drawn[np.isfinite(drawn)]
    if scored.size == 0 or not np.isfinite(value):
        return Interval(value=float(value), low=float("nan"), high=float("nan"), draws=0)
    low, high = np.quantile(scored, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high), draws=int(scored.size))


def interval(
    statistic: Statistic,
    subjects: NDArray[np.generic],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Percentile bootstrap over subjects (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13).

    Raises:
        ValueError: there is no row.
    """
    weights = draw_subjects(subjects, draws=draws, seed=seed)
    value = statistic(np.ones((1, len(subjects))))[0]
    return percentile_interval(value, over_draws(statistic, weights), level=level)


def paired_test(
    first: Statistic,
    second: Statistic,
    subjects: NDArray[np.generic],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> PairedTest:
    """Bootstrap of `first` minus `second`, both scored on the same drawn subjects.

    p is two-sided: twice the smaller share of draws on either side of zero, one added above and below so that it is
    never zero (Davison and Hinkley, Bootstrap Methods and their Application, sect. 4.2). Its floor is 2 / (draws + 1).
    p is 1 where the difference cannot be scored. Of n subjects it is never below 2 ** (1 - n), which is how often all
    of them fall on one side by chance: the draws of one subject are all alike, and would call any difference certain.
    """
    weights = draw_subjects(subjects, draws=draws, seed=seed)
    all_rows = np.ones((1, len(subjects)))
    value = float(first(all_rows)[0] - second(all_rows)[0])
    drawn = over_draws(lambda block: first(block) - second(block), weights)
    bounds = percentile_interval(value, drawn, level=level)
    scored = drawn[np.isfinite(drawn)]
    smaller = min(int((scored <= 0).sum()), int((scored >= 0).sum()))
    p = min(1.0, max(2 * (smaller + 1) / (scored.size + 1), 2.0 ** (1 - len(np.unique(subjects)))))
    return PairedTest(value=value, low=bounds.low, high=bounds.high, p=p, draws=bounds.draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p values, in the order given."""
    count = len(p_values)
    corrected = [1.0] * count
    running = 0.0
    for rank, at in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (count - rank) * p_values[at]))
        corrected[at] = running
    return corrected


def macro_auroc(
    scores: NDArray[np.floating], labels: NDArray[np.floating], labelled: NDArray[np.bool_] | None = None
) -> Statistic:
    """The mean AUROC over findings as a statistic. All arrays are (rows, findings)."""
    return macro_of(auroc, scores, labels, labelled)


def macro_of(
    metric: Metric,
    scores: NDArray[np.floating],
    labels: NDArray[np.floating],
    labelled: NDArray[np.bool_] | None = None,
) -> Statistic:
    """The mean of a metric over findings as a statistic. All arrays are (rows, findings).

    A draw that lacks one of the two classes for a finding leaves that finding out of its mean: the mean is then over
    the findings that the draw can score. A draw that can score none gives NaN.
    """
    known = np.ones(labels.shape, dtype=bool) if labelled is None else labelled

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = []
        for finding in range(scores.shape[1]):
            rows = known[:, finding]
            columns.append(metric(scores[rows, finding], labels[rows, finding], weights[:, rows]))
        table = np.stack(columns, axis=1)
        scored = np.isfinite(table)
        total = np.where(scored, table, 0.0).sum(axis=1)
        return np.where(scored.any(axis=1), total / np.maximum(scored.sum(axis=1), 1), np.nan)

    return statistic


def by_rows(
    function: Callable[[NDArray[np.floating], NDArray[np.floating]], float],
    scores: NDArray[np.floating],
    labels: NDArray[np.floating],
) -> Statistic:
    """Any function of (scores, labels) as a statistic: rows are repeated as often as drawn. Slow, and general."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        times = weights.astype(int)
        return np.array([function(np.repeat(scores, row, axis=0), np.repeat(labels, row, axis=0)) for row in times])

    return statistic
