"""How well a heat map points at a lesion: scores of one map, what chance would give them, and their means.

A map says with numbers (i, j, k) where in a study something is; below zero it says nothing. It is scored over the body
alone, with the lesion's region: air is no place to be wrong in, and would make every chance level small. Beside a score
stands its chance level: what the same values would get on average if they were dealt out over the body at random.
A map that is the same everywhere thus scores its chance, and one that is zero everywhere as well.

| score               | of 1 / of a map that says nothing | source |
|---|---|---|
| `pointing_game`     | hit / chance                      | Zhang 2018 (excitation backprop), sec. 4.2 |
| `share_inside`      | all heat inside / chance          | Wang 2020 (Score-CAM): the energy-based pointing game |
| `soft_dice`         | the region itself / 0 or chance   | issue's name; linear sums as in Sudre 2017 |
| `contrast_to_noise` | no upper bound / 0                | Boecking 2022 (BioViL), sec. 4.3; signed here |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomoglot.tasks.scores.intervals import DRAWS, paired_test
from tomoglot.tasks.scores.regions import mean_statistic
from tomoglot.tasks.scores.scoring import holm_comparisons, score_statistics
from tomoglot.tasks.task import MACRO, MODEL, Comparison, Score

METRICS = ("pointing_game", "soft_dice", "contrast_to_noise", "share_inside")
CHANCE = "chance"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatScore:
    """One map against one region: each of `METRICS`, and its chance level."""

    found: Mapping[str, float]
    chance: Mapping[str, float]


def score_heat(
    heat: NDArray[np.floating],
    region: NDArray[np.bool_],
    *,
    body: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 0.0,
) -> HeatScore:
    """Score one map (i, j, k) of one study.

    With h the map, h+ its positive part over its maximum (all ones where the map is one positive number), and over the
    N voxels of the body, M of them in the region:

    - ``pointing_game``: the share of the voxels holding the maximum of h that lie in the region, or within
      `tolerance_mm` of one of its voxels. Chance: the share of the body that does.
    - ``soft_dice``: 2 sum(h+ in the region) / (sum(h+) + M). Chance: 2 mean(h+) M / (sum(h+) + M).
    - ``contrast_to_noise``: (mean inside - mean outside) / sqrt(variance inside + variance outside) of h. Chance: 0.
    - ``share_inside``: sum(h+ in the region) / sum(h+). Chance: M / N.

    Raises:
        ValueError: shapes differ, the region is empty or the whole body, or the map is not finite.
    """
    if not heat.shape == region.shape == body.shape:
        raise ValueError(f"a map of {heat.shape}, a region of {region.shape} and a body of {body.shape} voxels")
    if not np.isfinite(heat).all():
        raise ValueError("a heat map holds values that are not finite")
    body = body | region
    inside = region[body]
    values = heat[body].astype(np.float64)
    if not 0 < inside.sum() < inside.size:
        raise ValueError("a heat map is scored against a region that is neither empty nor the whole body")
    near = inside if tolerance_mm <= 0 else _near(region, spacing_mm, tolerance_mm)[body]
    share = float(inside.mean())
    positive = _scaled(values)
    total, hit = positive.sum(), positive[inside].sum()
    spread = np.sqrt(values[inside].var() + values[~inside].var())
    contrast = values[inside].mean() - values[~inside].mean()
    return HeatScore(
        found={
            "pointing_game": float(near[values == values.max()].mean()),
            "soft_dice": float(2 * hit / (total + inside.sum())),
            "contrast_to_noise": float(contrast / spread) if spread > 0 else 0.0,
            "share_inside": float(hit / total) if total > 0 else share,
        },
        chance={
            "pointing_game": float(near.mean()),
            "soft_dice": float(2 * total * share / (total + inside.sum())),
            "contrast_to_noise": 0.0,
            "share_inside": share,
        },
    )


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    positive = np.maximum(values, 0.0)
    highest = positive.max()
    return positive / highest if highest > 0 else positive


def _near(region: NDArray[np.bool_], spacing_mm: tuple[float, float, float], tolerance_mm: float) -> NDArray[np.bool_]:
    return np.asarray(ndimage.distance_transform_edt(~region, sampling=spacing_mm) <= tolerance_mm)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatTable:
    """Scores of the maps of one arm on n studies: a table (n, f) a metric, NaN where a study lacks the finding."""

    values: Mapping[str, NDArray[np.float64]]
    findings: tuple[str, ...]
    subjects: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        rows: list[dict[str, Mapping[str, float]]],
        *,
        findings: tuple[str, ...],
        subjects: list[int],
        metrics: tuple[str, ...] = METRICS,
    ) -> HeatTable:
        """Tables from one record a study: finding -> metric -> value; a finding without a map is left out of it."""
        values = {
            metric: np.array(
                [[row.get(finding, {}).get(metric, np.nan) for finding in findings] for row in rows], dtype=np.float64
            ).reshape(len(rows), len(findings))
            for metric in metrics
        }
        return cls(values=values, findings=findings, subjects=np.asarray(subjects, dtype=np.int64))

    def column(self, metric: str, finding: str | None = None) -> NDArray[np.float64]:
        """One finding's values (n, 1), or all of them (n, f)."""
        table = self.values[metric]
        return table if finding is None else table[:, [self.findings.index(finding)]]


def score_tables(
    table: HeatTable, *, name: str = MACRO, each: bool = False, arm: str = MODEL, draws: int = DRAWS, seed: int = 0
) -> list[Score]:
    """Means with subject-level intervals: over findings under `name`, and with `each` of every finding.

    The prevalence of a score is the share of the scored studies that have the finding, and so a map.
    """
    scores = []
    for finding in (None, *(table.findings if each else ())):
        for metric in table.values:
            column = table.column(metric, finding)
            there = np.isfinite(column)
            rows = there.any(axis=1)
            if rows.any():
                scores += score_statistics(
                    finding or name,
                    {metric: mean_statistic(column[rows])},
                    table.subjects[rows],
                    prevalence=float(there.mean()),
                    arm=arm,
                    draws=draws,
                    seed=seed,
                )
    return scores


def compare_tables(
    ours: HeatTable, others: Mapping[str, HeatTable], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Comparison, ...]:
    """Paired tests of the means over findings against other maps of the same studies; Holm over all of them.

    Only what both arms have is compared: a study that one of them has no map of is left out.
    """
    tests = []
    for against, other in others.items():
        for metric in ours.values:
            mine, theirs = ours.column(metric), other.column(metric)
            both = np.isfinite(mine) & np.isfinite(theirs)
            rows = both.any(axis=1)
            if not rows.any():
                continue
            first, second = (mean_statistic(np.where(both, table, np.nan)[rows]) for table in (mine, theirs))
            subjects = ours.subjects[rows]
            test = paired_test(first, second, subjects, draws=draws, seed=seed)
            tests.append((MACRO, metric, against, len(np.unique(subjects)), test))
    return holm_comparisons(tests)
