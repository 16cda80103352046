"""What is measured, for scores against 0/1 labels. Every metric takes weights, one row of them a bootstrap draw.

`scores` and `labels` are (rows,); `weights` is (draws, rows) or None, which weighs every row once. The result is
(draws,), and NaN where a draw holds one class only and the metric needs both. The plain definitions stand in
tests/tasks/scores/test_metrics.py, where each is compared with scikit-learn on repeated rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Metric = Callable[[Array, Array, NDArray[np.float64] | None], NDArray[np.float64]]


def auroc(scores: Array, labels: Array, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Area under the ROC curve: the share of (present, absent) pairs in the right order, ties counting half.

    Rows are sorted once for all draws; the Mann-Whitney count is then a cumulative sum.
    """
    drawn = _weights(weights, len(scores))
    if len(scores) == 0:
        return np.full(len(drawn), np.nan)
    present, absent = _by_score(scores, labels, drawn)
    below = np.cumsum(absent, axis=1) - absent
    pairs = present.sum(axis=1) * absent.sum(axis=1)
    return _ratio((present * (below + absent / 2)).sum(axis=1), pairs)


def average_precision(scores: Array, labels: Array, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Mean of the precision at each threshold, weighed by the recall that the threshold adds; no interpolation."""
    drawn = _weights(weights, len(scores))
    if len(scores) == 0:
        return np.full(len(drawn), np.nan)
    present, absent = (part[:, ::-1] for part in _by_score(scores, labels, drawn))
    hits = np.cumsum(present, axis=1)
    called = hits + np.cumsum(absent, axis=1)
    precision = hits / np.maximum(called, np.finfo(float).tiny)
    return _ratio((precision * present).sum(axis=1), present.sum(axis=1))


def balanced_accuracy(
    scores: Array, labels: Array, weights: NDArray[np.float64] | None = None, *, threshold: float = 0.5
) -> NDArray[np.float64]:
    """Mean of sensitivity and specificity when a probability of `threshold` or more calls a finding present."""
    hits, misses, alarms, quiet = _counts(scores, labels, weights, threshold=threshold)
    return (_ratio(hits, hits + misses) + _ratio(quiet, quiet + alarms)) / 2


def f1(
    scores: Array, labels: Array, weights: NDArray[np.float64] | None = None, *, threshold: float = 0.5
) -> NDArray[np.float64]:
    """Harmonic mean of precision and sensitivity at `threshold`; NaN where the draw holds no finding and no call."""
    hits, misses, alarms, _ = _counts(scores, labels, weights, threshold=threshold)
    return _ratio(2 * hits, 2 * hits + misses + alarms)


def brier(scores: Array, labels: Array, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Mean squared distance of the probability from the label; lower is better."""
    drawn = _weights(weights, len(scores))
    return _ratio(drawn @ (scores - labels) ** 2, drawn.sum(axis=1))


def calibration_error(
    scores: Array, labels: Array, weights: NDArray[np.float64] | None = None, *, bins: int = 10
) -> NDArray[np.float64]:
    """Expected calibration error: mean |probability - share present| over equal-width bins, weighed by rows a bin.

    Source: Guo et al., On Calibration of Modern Neural Networks, sect. 2.
    """
    drawn = _weights(weights, len(scores))
    bin_of = np.clip((np.asarray(scores) * bins).astype(int), 0, bins - 1)
    members = np.eye(bins)[bin_of]
    # Within a bin the weights cancel: rows x |mean probability - share| is |sum of (probability - label)|.
    gaps = np.abs((drawn * (scores - labels)) @ members)
    return _ratio(gaps.sum(axis=1), drawn.sum(axis=1))


def accuracy(
    called: NDArray[np.integer], true: NDArray[np.integer], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Share of the rows whose class was called right; `called` and `true` are the numbers of the classes, (rows,)."""
    drawn = _weights(weights, len(called))
    return _ratio(drawn @ (called == true).astype(np.float64), drawn.sum(axis=1))


def class_balanced_accuracy(
    called: NDArray[np.integer], true: NDArray[np.integer], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Mean over the classes that a draw holds of the share of their rows that were called right.

    `called` and `true` are the numbers of the classes, (rows,); so in the next one.
    """
    return _over_classes(lambda given, truth: _counts(given, truth, weights, threshold=0.5)[:2], called, true)


def class_f1(
    called: NDArray[np.integer], true: NDArray[np.integer], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Mean over classes of F1, each class against the rest; a class that a draw neither holds nor calls has no say."""

    def parts(given: Array, truth: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        hits, misses, alarms, _ = _counts(given, truth, weights, threshold=0.5)
        return hits, (misses + alarms) / 2

    return _over_classes(parts, called, true)


def best_threshold(scores: Array, labels: Array) -> float | None:
    """The threshold with the highest balanced accuracy, half-way between two scores; None where a class lacks.

    Of equals, the one in the middle. To be chosen on other rows than those that are scored.
    """
    truth = np.asarray(labels) > 0.5
    if truth.all() or not truth.any():
        return None
    steps = np.unique(np.asarray(scores, dtype=np.float64))
    cuts = np.concatenate([[steps[0]], (steps[1:] + steps[:-1]) / 2])
    reached = np.array([balanced_accuracy(scores, labels, threshold=cut)[0] for cut in cuts])
    best = np.flatnonzero(reached >= reached.max() - 1e-12)
    return float(cuts[best[len(best) // 2]])


METRICS: Mapping[str, Metric] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
    "brier": brier,
    "calibration_error": calibration_error,
}


def prevalence(labels: Array) -> float:
    """Share of the rows with the finding; NaN without rows."""
    return float(np.mean(labels)) if len(labels) else float("nan")


def _weights(weights: NDArray[np.float64] | None, rows: int) -> NDArray[np.float64]:
    return np.ones((1, rows)) if weights is None else weights


def _by_score(
    scores: Array, labels: Array, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight with and without the finding at each distinct score, rising: two arrays (draws, distinct scores)."""
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores)[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    truth = np.asarray(labels)[order] > 0.5
    drawn = weights[:, order]
    present, absent = drawn * truth, drawn * ~truth
    if len(starts) == len(ranked):
        return present, absent
    return np.add.reduceat(present, starts, axis=1), np.add.reduceat(absent, starts, axis=1)


def _over_classes(
    parts: Callable[[Array, Array], tuple[NDArray[np.float64], NDArray[np.float64]]],
    called: NDArray[np.integer],
    true: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Mean over classes of hits / (hits + the second part), leaving out classes where a draw has neither."""
    columns = []
    for label in np.union1d(called, true):
        hits, others = parts((called == label).astype(np.float64), (true == label).astype(np.float64))
        columns.append(_ratio(hits, hits + others))
    table = np.stack(columns, axis=1)
    scored = np.isfinite(table)
    return _ratio(np.where(scored, table, 0.0).sum(axis=1), scored.sum(axis=1).astype(np.float64))


def _counts(
    scores: Array, labels: Array, weights: NDArray[np.float64] | None, *, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    drawn = _weights(weights, len(scores))
    called, truth = np.asarray(scores) >= threshold, np.asarray(labels) > 0.5
    cells = (called & truth, ~called & truth, called & ~truth, ~called & ~truth)
    hits, misses, alarms, quiet = (drawn @ cell.astype(np.float64) for cell in cells)
    return hits, misses, alarms, quiet


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
