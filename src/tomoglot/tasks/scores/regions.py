"""Regions of a mask: which ones a task learns, what is measured of each study, and from there to scores.

What an empty mask means: a study without the region in truth has no Dice, no distance and no lesion score; what was
predicted there counts as `false_positive_ml` alone. A study with the region where nothing was predicted has Dice, NSD
and lesion scores of 0, and as HD95 the diagonal of its field of view: no study may leave the mean by being missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.lesion import LESIONS, REGIONS, region_numbers
from tomoglot.tasks.scores.intervals import (
    DRAWS,
    Statistic,
    draw_subjects,
    over_draws,
    paired_test,
    percentile_interval,
)
from tomoglot.tasks.scores.lesions import LEAST_IOU, score_lesions
from tomoglot.tasks.scores.scoring import holm_comparisons
from tomoglot.tasks.scores.surfaces import dice, hd95_mm, nsd, surface_distances_mm
from tomoglot.tasks.task import MACRO, MODEL, Comparison, Score

Regions = Mapping[str, tuple[int, ...]]
# What a task learns where nobody says: the regions of a tumour, and every lesion that is no tissue of one.
DEFAULT_REGIONS = ("enhancing", "core", "whole", *(name for name in LESIONS if name not in REGIONS["whole"]))
# Of studies with the region; the last one of those without it.
METRICS = ("dice", "lesion_dice", "lesion_f1", "nsd", "hd95_mm", "volume_true_ml", "volume_predicted_ml")
FALSE_POSITIVE = "false_positive_ml"
COMPARED = ("dice", "lesion_f1")
# float32, as probabilities are: otherwise one that equals a threshold could fall on either side of it.
THRESHOLDS = (np.arange(1, 20) / 20).astype(np.float32)


def choose_regions(wanted: Sequence[str] | Regions | None, present: set[int]) -> dict[str, tuple[int, ...]]:
    """Region names and their mask labels; with None, the default ones that the training masks hold.

    Raises:
        ValueError: an unknown region, one that no training mask holds, or no region at all.
    """
    if isinstance(wanted, Mapping):
        chosen = {name: tuple(labels) for name, labels in wanted.items()}
    else:
        chosen = {name: region_numbers(name) for name in (DEFAULT_REGIONS if wanted is None else wanted)}
    absent = [name for name, labels in chosen.items() if not present & set(labels)]
    if wanted is None:
        chosen = {name: labels for name, labels in chosen.items() if name not in absent}
    elif absent:
        raise ValueError(f"no training mask holds {', '.join(absent)}; the labels there: {sorted(present) or 'none'}")
    if not chosen:
        raise ValueError(f"no region to learn: the training masks hold the labels {sorted(present) or '(none)'}")
    return chosen


def measure_region(
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    *,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
    least_iou: float = LEAST_IOU,
) -> dict[str, float]:
    """What is measured of one region (i, j, k) of one study; see the top of this file for empty ones."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    predicted_ml = float(predicted.sum()) * voxel_ml
    if not true.any():
        return {FALSE_POSITIVE: predicted_ml}
    found = {"volume_true_ml": float(true.sum()) * voxel_ml, "volume_predicted_ml": predicted_ml}
    if not predicted.any():
        diagonal_mm = float(np.linalg.norm(np.asarray(true.shape) * np.asarray(spacing_mm)))
        return found | {"dice": 0.0, "lesion_dice": 0.0, "lesion_f1": 0.0, "nsd": 0.0, "hd95_mm": diagonal_mm}
    lesions = score_lesions(predicted, true, least_iou=least_iou)
    distances = surface_distances_mm(predicted, true, spacing_mm)
    return found | {
        "dice": dice(predicted, true),
        "lesion_dice": lesions.dice,
        "lesion_f1": lesions.f1,
        "nsd": nsd(*distances, tolerance_mm=tolerance_mm),
        "hd95_mm": hd95_mm(*distances),
    }


class ThresholdChooser:
    """Counts of voxels at each threshold, summed over studies, from which the threshold of each region is chosen.

    The choice is the highest Dice of all voxels of all studies pooled. A mean over studies would have to say what an
    empty study is worth: with 1 for a rightly empty one, predicting nothing wins for a rare region.
    """

    def __init__(self, num_regions: int) -> None:
        shape = (num_regions, len(THRESHOLDS) + 1)
        self._called, self._hit = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)

    def add(self, probabilities: NDArray[np.float32], true: NDArray[np.bool_]) -> None:
        """Count one study: both (r, i, j, k)."""
        for region in range(len(true)):
            passed = np.searchsorted(THRESHOLDS, probabilities[region].ravel(), side="right")
            self._called[region] += np.bincount(passed, minlength=len(THRESHOLDS) + 1)
            self._hit[region] += np.bincount(passed[true[region].ravel()], minlength=len(THRESHOLDS) + 1)

    def choose(self) -> list[float | None]:
        """Threshold of each region, of equals the one nearest to a half; None where no study had the region."""
        chosen: list[float | None] = []
        for called, hit in zip(self._called, self._hit, strict=True):
            if not hit.sum():
                chosen.append(None)
                continue
            # Number of voxels at or above each threshold.
            calls, hits = (np.cumsum(counts[::-1])[::-1][1:] for counts in (called, hit))
            pooled = 2 * hits / np.maximum(calls + hit.sum(), 1)
            best = np.flatnonzero(pooled >= pooled.max() - 1e-12)
            chosen.append(float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]]))
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What one arm did on n studies with a mask: a table (n, r) a metric, NaN where a study has no such value."""

    values: Mapping[str, NDArray[np.float64]]
    regions: tuple[str, ...]
    studies: tuple[str, ...]
    subjects: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, Mapping[str, float]]],
        *,
        regions: Sequence[str],
        studies: Sequence[str],
        subjects: Sequence[int],
    ) -> Measured:
        """Tables from one record a study: region -> metric -> value."""
        values = {
            metric: np.array([[row[region].get(metric, np.nan) for region in regions] for row in rows], dtype=float)
            for metric in (*METRICS, FALSE_POSITIVE)
        }
        return cls(
            values={metric: table.reshape(len(rows), len(regions)) for metric, table in values.items()},
            regions=tuple(regions),
            studies=tuple(studies),
            subjects=np.asarray(subjects, dtype=np.int64),
        )

    @property
    def has(self) -> NDArray[np.bool_]:
        """Which studies have which region in truth: (n, r)."""
        return np.asarray(np.isfinite(self.values["dice"]))

    def record(self, study: int) -> dict[str, float]:
        """Every value of one study, as `region/metric`."""
        return {
            f"{region}/{metric}": float(table[study, at])
            for at, region in enumerate(self.regions)
            for metric, table in self.values.items()
            if np.isfinite(table[study, at])
        }


def mean_statistic(table: NDArray[np.float64]) -> Statistic:
    """The mean over regions of the mean over studies of a table (n, r), for bootstrap weights (draws, n).

    NaN has no say. A region of which a draw holds no study leaves the mean of that draw.
    """
    there = np.isfinite(table)
    filled = np.where(there, table, 0.0)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        count = weights @ there.astype(np.float64)
        means = np.divide(weights @ filled, count, out=np.zeros_like(count), where=count > 0)
        regions = (count > 0).sum(axis=1)
        return np.where(regions > 0, means.sum(axis=1) / np.maximum(regions, 1), np.nan)

    return statistic


def score_measured(measured: Measured, *, arm: str = MODEL, draws: int = DRAWS, seed: int = 0) -> list[Score]:
    """Means with intervals: `macro` of the metrics that are compared, then every metric of each region."""
    asked = [(MACRO, metric, slice(None)) for metric in COMPARED]
    for at, region in enumerate(measured.regions):
        asked += [(region, metric, slice(at, at + 1)) for metric in (*METRICS, FALSE_POSITIVE)]
    scores = []
    for name, metric, columns in asked:
        table = measured.values[metric][:, columns]
        rows = np.isfinite(table).any(axis=1)
        if not rows.any():
            continue
        statistic = mean_statistic(table[rows])
        weights = draw_subjects(measured.subjects[rows], draws=draws, seed=seed)
        bounds = percentile_interval(float(statistic(np.ones((1, rows.sum())))[0]), over_draws(statistic, weights))
        scores.append(
            Score(
                name=name,
                value=bounds.value,
                low=bounds.low,
                high=bounds.high,
                subjects=len(np.unique(measured.subjects[rows])),
                studies=int(rows.sum()),
                prevalence=float(measured.has[:, columns].mean()),
                metric=metric,
                arm=arm,
            )
        )
    return scores


def compare_measured(
    ours: Measured, others: Mapping[str, Measured], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Comparison, ...]:
    """Paired tests against each control: the macro scores and the Dice of each region; Holm over all of them."""
    asked = [(MACRO, metric, slice(None)) for metric in COMPARED]
    asked += [(region, "dice", slice(at, at + 1)) for at, region in enumerate(ours.regions)]
    tests = []
    for against, other in others.items():
        for name, metric, columns in asked:
            mine, its = ours.values[metric][:, columns], other.values[metric][:, columns]
            rows = np.isfinite(mine).any(axis=1)
            if not rows.any():
                continue
            subjects = ours.subjects[rows]
            statistics = mean_statistic(mine[rows]), mean_statistic(its[rows])
            test = paired_test(*statistics, subjects, draws=draws, seed=seed)
            tests.append((name, metric, against, len(np.unique(subjects)), test))
    return holm_comparisons(tests)
