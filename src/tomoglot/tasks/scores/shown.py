"""A detector when only some of the acquired sequences are shown: every subset, single ones, and random losses.

Each sequence of a study is encoded once; every view is judged from what it said. A study of which a view shows nothing
is left out of that view, and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tomoglot.batches.batch import Batch
from tomoglot.tasks.heads.detector import Detector
from tomoglot.tasks.scores.detection_scores import Said, by_organ, split_normal
from tomoglot.tasks.scores.intervals import draw_subjects, macro_auroc, over_draws, percentile_interval
from tomoglot.tasks.scores.scoring import Truth, macro_score
from tomoglot.tasks.task import MACRO, Score, SubsetScore
from tomoglot.tasks.zero_shot import SUBSET_DRAWS, sequence_subsets


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown: these sequences (None: all), of studies of one organ (None: all), a share of them hidden."""

    sequences: tuple[str, ...] | None = None
    organ: str | None = None
    hidden: float = 0.0
    seed: int = 0

    def shown(self, batch: Batch) -> Bool[Tensor, "b c"]:
        """Which acquired sequences are shown; where a share is hidden at random, one of each study always stays."""
        names = batch.sequences if self.sequences is None else self.sequences
        there = batch.acquired & torch.tensor([name in names for name in batch.sequences], device=batch.acquired.device)
        if self.hidden == 0:
            return there
        kept = np.stack([_keep(study, self, len(batch.sequences)) for study in batch.studies])
        lots = torch.from_numpy(kept).to(there.device).masked_fill(~there, -1.0)
        # The largest lot of a study stays, whatever the share.
        stays = (lots >= self.hidden) | (lots == lots.amax(dim=1, keepdim=True))
        return there & stays


def judge_views(net: Detector, batch: Batch, views: Sequence[View]) -> Float[Tensor, "b v f"]:
    """Probabilities under each view; NaN where it shows nothing of a study."""
    tokens = net.read(batch)
    found = []
    for view in views:
        shown = view.shown(batch)
        some = shown.any(dim=1)
        given = torch.full((len(batch), len(net.findings)), torch.nan, device=tokens.device)
        if some.any():
            given[some] = net.probabilities(net.judge(tokens[some], shown[some], batch.sequences))
        found.append(given)
    return torch.stack(found, dim=1)


def plan_subsets(truth: Truth, acquired: NDArray[np.bool_], sequences: Sequence[str], *, limit: int) -> list[View]:
    """Every subset of the sequences that some study has; where there are several organs, each organ's own.

    At most `limit` an organ: small ones first, and the full set.
    """
    organs: dict[str | None, NDArray[np.bool_]] = {
        organ: rows for organ, (rows, _) in by_organ(split_normal(truth.labels, truth)[1]).items()
    } or {None: np.ones(len(truth.studies), dtype=bool)}
    views = []
    for organ, rows in organs.items():
        names = [name for at, name in enumerate(sequences) if acquired[rows, at].any()]
        views += [View(sequences=subset, organ=organ) for subset in sequence_subsets(names, limit=limit)]
    return views


def score_views(
    views: Sequence[View], given: NDArray[np.floating], truth: Truth, *, draws: int = SUBSET_DRAWS, seed: int = 0
) -> tuple[tuple[SubsetScore, ...], list[Score], tuple[str, ...]]:
    """Macro AUROC of every subset, and as scores: of each sequence alone, the mean over subsets, and random losses.

    `given` is (v, n, f). The mean over an organ's subsets is taken within each draw; the notes name best and worst.
    """
    rows: list[SubsetScore] = []
    scores: list[Score] = []
    notes: list[str] = []
    weights = draw_subjects(truth.subjects, draws=draws, seed=seed)
    for organ in dict.fromkeys(view.organ for view in views):
        drawn: list[NDArray[np.float64]] = []
        found: list[SubsetScore] = []
        title = MACRO if organ is None else f"{organ}: {MACRO}"
        for view, said in zip(views, given, strict=True):
            if view.organ != organ:
                continue
            row, sampled = _score_view(view, said, truth, weights)
            if row is None:
                continue
            if view.hidden > 0:
                scores.append(row.score.but(name=f"{title}, {100 * view.hidden:g} % of sequences hidden"))
                continue
            found.append(row.but(**{"score.name": title}))
            drawn.append(sampled)
            if len(row.sequences) == 1:
                scores.append(row.score.but(name=f"{title}, {row.sequences[0]} only"))
        if found:
            scores += _mean_over(found, drawn, truth, title)
            notes.append(_best_and_worst(found, title))
            rows += found
    return tuple(rows), scores, tuple(notes)


def _score_view(
    view: View, said: Said, truth: Truth, weights: NDArray[np.float64]
) -> tuple[SubsetScore | None, NDArray[np.float64]]:
    given, split = split_normal(said, truth)
    keep: NDArray[np.bool_] = np.asarray(np.isfinite(said).all(axis=1))
    total: NDArray[np.bool_] = np.ones(len(keep), dtype=np.bool_)
    if view.organ is not None:
        rows, part = by_organ(split)[view.organ]
        total, keep = rows, keep & rows
        at = [split.findings.index(name) for name in part.findings]
        given, split = given[:, at], split.columns(part.findings)
    if not keep.any():
        return None, np.empty(0)
    part = split.rows(keep)
    statistic = macro_auroc(given[keep], part.labels, part.labelled)
    sampled = over_draws(statistic, weights[:, keep])
    bounds = percentile_interval(float(statistic(np.ones((1, len(part.studies))))[0]), sampled)
    if bounds.draws == 0:
        return None, sampled
    left_out = int((total & ~keep).sum())
    return SubsetScore(sequences=view.sequences or (), score=macro_score(bounds, part), left_out=left_out), sampled


def _mean_over(
    found: Sequence[SubsetScore], drawn: Sequence[NDArray[np.float64]], truth: Truth, title: str
) -> list[Score]:
    bounds = percentile_interval(float(np.mean([row.score.value for row in found])), np.mean(drawn, axis=0))
    if not bounds.draws:
        return []
    most = max(found, key=lambda row: row.score.studies or 0).score
    name = f"{title}, mean over {len(found)} subsets"
    return [most.but(name=name, value=bounds.value, low=bounds.low, high=bounds.high)]


def _best_and_worst(found: Sequence[SubsetScore], title: str) -> str:
    order = sorted(found, key=lambda row: row.score.value)
    words = "; ".join(
        f"{word} {'+'.join(row.sequences)} {row.score}" for word, row in (("worst", order[0]), ("best", order[-1]))
    )
    return f"Subsets of sequences, {title} (worst and best are picked after the fact): {words}."


def _keep(study: str, view: View, channels: int) -> NDArray[np.float64]:
    """A lot for each channel of a study; the same for every share, so that what is hidden at 0.3 is at 0.6."""
    digest = hashlib.sha256(f"{view.seed} {study}".encode()).digest()
    return np.random.default_rng(list(digest[:8])).random(channels)
