"""Searches: which answers stand near a query, and the expected rank measures where likenesses are tied.

A search is a matrix product, in blocks of queries: no index is needed at the sizes that are scored here. Ties are not
broken by the order in which studies happen to lie: every measure is its mean over all orders of the tied answers, so
a model that gives all answers one likeness scores exactly what chance does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.tasks.scores.intervals import Statistic

DEPTHS = (1, 5, 10, 50)
MAP, RANK = "map", "median_rank"
# Rounding of sums differs with the size of a batch: likenesses nearer than this are tied.
DECIMALS = 6
BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """q queries over m answers, likeness being the product of their vectors.

    Attributes:
        name: what is looked for by what.
        queries: (q, d).
        answers: (m, d).
        right: which answers are right for some of the queries, given by number: (some, m).
        homes: the answer that each query belongs to (q,), for the choice of a pool.
        subjects: whose query it is (q,).
        owners: whose answer it is (m,), where a subject's own are not to be found; else None.
    """

    name: str
    queries: NDArray[np.float64]
    answers: NDArray[np.float64]
    right: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
    homes: NDArray[np.int64]
    subjects: NDArray[np.int64]
    owners: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """Rank measures of each query: R@k, average precision and first rank (q, measures), NaN without a right answer.

    `share` is that of right answers among those that could be found (q,).
    """

    measures: tuple[str, ...]
    values: NDArray[np.float64]
    share: NDArray[np.float64]

    def column(self, measure: str) -> NDArray[np.float64]:
        """One measure of every query."""
        return self.values[:, self.measures.index(measure)]


def rank(search: Search, *, pool: int | None = None, rounds: int = 1, seed: int = 0) -> Ranks:
    """Rank the answers of every query: all of them, or those of random pools of one size that hold its home.

    With a `pool`, the answers are cut at random into pools (the last is filled up), `rounds` times, and a query's
    measures are means over the rounds.

    Raises:
        ValueError: fewer answers than the pool should have.
    """
    count = len(search.answers)
    if pool is not None and pool > count:
        raise ValueError(f"pool is {pool}, and {search.name} has {count} answers; set a smaller one, or another split")
    depths = tuple(depth for depth in DEPTHS if depth < (pool or count))
    measures = (*(f"r@{depth}" for depth in depths), MAP, RANK)
    total = np.zeros((len(search.queries), len(measures) + 1))
    times = np.zeros(len(search.queries))
    rng = np.random.default_rng(seed)
    for _ in range(1 if pool is None else rounds):
        order = np.arange(count) if pool is None else rng.permutation(count)
        for begin in range(0, count, pool or count):
            own = order[begin : begin + (pool or count)]
            # Filled up from the beginning, so that every pool has the same size.
            within = np.sort(np.concatenate([own, order[: (pool or count) - len(own)]]))
            asked = np.flatnonzero(np.isin(search.homes, own))
            for at in range(0, len(asked), BLOCK):
                rows = asked[at : at + BLOCK]
                found = _rank_block(search, rows, within, depths)
                scored = np.isfinite(found[:, 0])
                total[rows[scored]] += found[scored]
                times[rows[scored]] += 1
    values = np.divide(total, times[:, None], out=np.full_like(total, np.nan), where=times[:, None] > 0)
    return Ranks(measures=measures, values=values[:, :-1], share=values[:, -1])


def rank_measures(
    likeness: NDArray[np.floating], right: NDArray[np.bool_], depths: tuple[int, ...] = DEPTHS
) -> NDArray[np.float64]:
    """R@k at each depth, average precision and the rank of the first right answer; means over all orders of ties.

    R@k is the chance that a right answer is among the first k. Average precision with ties: McSherry and Najork 2008,
    sect. 3. Both arguments are (m,), and some answer is right.
    """
    _, group, sizes = np.unique(-likeness, return_inverse=True, return_counts=True)
    hits = np.bincount(group, weights=right, minlength=len(sizes))
    before, hits_before = np.cumsum(sizes) - sizes, np.cumsum(hits) - hits
    first = int(np.flatnonzero(hits)[0])
    tied, right_tied = int(sizes[first]), int(hits[first])
    drawn = np.clip(np.array(depths, dtype=np.int64) - before[first], 0, tied)
    # None of the right ones among those drawn from the group without replacement.
    each = np.arange(right_tied)
    missed = np.prod(np.maximum(tied - drawn[:, None] - each, 0) / (tied - each), axis=1)
    place = np.arange(1, len(likeness) + 1)
    size, hit, ahead, hits_ahead = (np.repeat(part, sizes) for part in (sizes, hits, before, hits_before))
    expected = hits_ahead + 1 + (place - ahead - 1) * (hit - 1) / np.maximum(size - 1, 1)
    precision = (hit / size * expected / place).sum() / hits.sum()
    return np.array([*(1 - missed), precision, before[first] + (tied + 1) / (right_tied + 1)])


def weighted_median(values: NDArray[np.float64]) -> Statistic:
    """The median of values (n,) as a statistic: half-way between the two middle ones where a draw is even."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        passed = np.cumsum(weights[:, order], axis=1)
        half = passed[:, -1:] / 2
        lower, upper = (passed < half).sum(axis=1), (passed <= half).sum(axis=1)
        last = len(ranked) - 1
        middle = (ranked[np.minimum(lower, last)] + ranked[np.minimum(upper, last)]) / 2
        return np.where(passed[:, -1] > 0, middle, np.nan)

    return statistic


def _rank_block(
    search: Search, rows: NDArray[np.int64], within: NDArray[np.int64], depths: tuple[int, ...]
) -> NDArray[np.float64]:
    """Measures of some queries over some answers, and the share that is right; NaN where none is."""
    likeness = np.round(search.queries[rows] @ search.answers[within].T, DECIMALS)
    right = search.right(rows)[:, within]
    found = np.full((len(rows), len(depths) + 3), np.nan)
    for at, row in enumerate(rows):
        free = slice(None) if search.owners is None else search.owners[within] != search.subjects[row]
        answers = right[at, free]
        if answers.any():
            found[at] = [*rank_measures(likeness[at, free], answers, depths), answers.mean()]
    return found
