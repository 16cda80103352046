"""Studies whose masks show a finding, and how well maps of them point at it, beside maps that have not read them.

What every task with heat maps does: walk the studies, score their maps by arm, study and finding, write them as files,
and turn them into a result. How a map is made is the task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.geometry import spacing_mm
from tomoglot.store.catalogue import StudyRow
from tomoglot.studies.lesion import finding_numbers
from tomoglot.tasks.labels import PartOfStore
from tomoglot.tasks.maps.blind_maps import MeanMaps, middle_map
from tomoglot.tasks.maps.heat_map_files import draw_overlay, write_heat
from tomoglot.tasks.maps.heat_maps import (
    CHANCE,
    METRICS,
    HeatScore,
    HeatTable,
    compare_tables,
    score_heat,
    score_tables,
)
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.task import MODEL, Prediction, TaskResult, side_of

MIDDLE, MEAN_MAP = "middle of the body", "mean map"
Heat = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One study to be explained: its batch, its row, and the region (i, j, k) of each finding that it has."""

    batch: Batch
    row: StudyRow
    regions: Mapping[str, NDArray[np.bool_]]
    tolerance_mm: float

    @property
    def body(self) -> NDArray[np.bool_]:
        """Where something was imaged (i, j, k): every rule of intensity keeps zero for where nothing was."""
        return (self.batch.volumes[0] != 0).any(dim=0).cpu().numpy()

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the crop."""
        return self.batch.affine[0].double().cpu().numpy()

    @property
    def subject(self) -> int:
        """Whose study it is."""
        return int(self.batch.subjects[0])

    @property
    def shown(self) -> tuple[str, ...]:
        """Acquired sequences, in the batch's order."""
        pairs = zip(self.batch.sequences, self.batch.acquired[0].tolist(), strict=True)
        return tuple(name for name, there in pairs if there)

    def score(self, heat: Heat, finding: str) -> HeatScore:
        """One map (i, j, k) against the region of a finding."""
        return score_heat(
            heat,
            self.regions[finding],
            body=self.body,
            spacing_mm=spacing_mm(self.affine),
            tolerance_mm=self.tolerance_mm,
        )


class Cases:
    """The studies to be explained, in the store's order; they can be walked more than once."""

    def __init__(
        self,
        store: StudySource,
        *,
        asked: Sequence[str],
        findings: Sequence[str] | None,
        loader: LoaderConfig,
        split: str,
        limit: int | None = None,
        seed: int = 0,
        tolerance_mm: float = 0.0,
        device: torch.device | str = "cpu",
        to: str = "explain",
    ) -> None:
        """Choose the studies: `asked` are all findings that there could be a map of, `findings` those that are wanted.

        Raises:
            ValueError: a finding that is not asked or that no mask can show, or no study with a mask.
        """
        numbers = {finding: finding_numbers(finding) for finding in asked}
        wanted = findings or [finding for finding, its in numbers.items() if its is not None]
        refused = [finding for finding in wanted if numbers.get(finding) is None]
        if refused or not wanted:
            known = ", ".join(finding for finding, its in numbers.items() if its is not None) or "none"
            raise ValueError(f"cannot {to} {', '.join(refused) or 'anything'}: asked and shown by masks are {known}")
        self.findings = tuple(wanted)
        self.numbers = {finding: its for finding, its in numbers.items() if its is not None}
        self._tolerance_mm = tolerance_mm
        rows = [
            row
            for row in store.rows
            if side_of(split) in (None, row.split)
            and row.has_mask
            and set(row.sequences) & set(loader.sequences or store.sequences)
            and any(row.labels.get(finding, 0.0) > 0.5 for finding in wanted)
        ]
        if not rows:
            raise ValueError(f"no study of split {split!r} has a mask and one of {', '.join(wanted)}")
        if limit is not None:
            kept = set(np.random.default_rng(seed).permutation(len(rows))[:limit].tolist())
            rows = [row for at, row in enumerate(rows) if at in kept]
        self.rows = tuple(rows)
        settings = loader.but(masks=True, batch_size=1)
        self._loader = Loader(PartOfStore(store, self.rows), settings, split=None, train=False)
        self._device = device

    def __iter__(self) -> Iterator[Case]:
        """Studies of which the crop shows a finding's region."""
        for row, batch in zip(self.rows, self._loader, strict=True):
            assert batch.masks is not None and batch.studies == (row.key,)
            mask = batch.masks[0].numpy()
            regions = {
                finding: np.isin(mask, self.numbers[finding])
                for finding in self.findings
                if row.labels.get(finding, 0.0) > 0.5
            }
            regions = {finding: region for finding, region in regions.items() if region.any()}
            if regions:
                moved = batch.to(self._device)
                yield Case(batch=moved, row=row, regions=regions, tolerance_mm=self._tolerance_mm)


class Gathered:
    """Scores by arm, study and finding; studies stay in the order in which they came."""

    def __init__(
        self,
        findings: tuple[str, ...],
        *,
        metrics: tuple[str, ...] = METRICS,
        measure: Callable[[Case, Heat, str], HeatScore] = Case.score,
    ) -> None:
        """Score by `measure`, whose names are `metrics`."""
        self.findings, self.metrics, self.measure = findings, metrics, measure
        self.subjects: dict[str, int] = {}
        self.found: dict[str, dict[str, dict[str, Mapping[str, float]]]] = {}

    def add(self, arm: str, case: Case, finding: str, values: Mapping[str, float]) -> None:
        """Scores of an arm's map of one finding of a study."""
        self.subjects[case.row.key] = case.subject
        self.found.setdefault(arm, {}).setdefault(case.row.key, {})[finding] = values

    def score(self, arm: str, case: Case, finding: str, heat: Heat) -> None:
        """Score an arm's map (i, j, k) of one finding of a study."""
        self.add(arm, case, finding, self.measure(case, heat, finding).found)

    def table(self, arm: str) -> HeatTable:
        """All of an arm."""
        rows = [self.found[arm].get(study, {}) for study in self.subjects]
        return HeatTable.of(rows, findings=self.findings, subjects=list(self.subjects.values()), metrics=self.metrics)

    @property
    def shown(self) -> tuple[str, ...]:
        """Findings that some study has a map of."""
        found = {finding for its in self.found.get(MODEL, {}).values() for finding in its}
        return tuple(finding for finding in self.findings if finding in found)


def keep_maps(
    case: Case,
    finding: str,
    each: Heat,
    *,
    gathered: Gathered,
    by_sequence: Gathered,
    means: MeanMaps,
) -> None:
    """Score the mean of a study's maps (s, i, j, k) and each of them, and remember the mean for other subjects."""
    mean = each.mean(axis=0)
    scored = gathered.measure(case, mean, finding)
    gathered.add(MODEL, case, finding, scored.found)
    gathered.add(CHANCE, case, finding, scored.chance)
    means.add(finding, case.subject, mean, body=case.body, affine=case.affine)
    for sequence, one in zip(case.shown, each, strict=True):
        by_sequence.score(sequence, case, finding, one)


def add_blind_maps(
    gathered: Gathered,
    cases: Cases,
    means: MeanMaps,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Score the middle of the body and the mean map of all others for each finding that has a map."""
    total = len(cases.rows)
    for number, case in enumerate(cases):
        middle = middle_map(case.body, case.affine)
        for finding in gathered.found[MODEL].get(case.row.key, {}):
            others = means.of_others(finding, case.subject, body=case.body, affine=case.affine)
            for arm, heat in ((MIDDLE, middle), (MEAN_MAP, others)):
                if heat is not None:
                    gathered.score(arm, case, finding, heat)
        if progress is not None:
            progress(total + number + 1, 2 * total)


def write_maps(out: Path, case: Case, finding: str, each: Heat, *, picture: bool, title: str = "") -> None:
    """One file a sequence of maps (s, i, j, k), and with `picture` a drawing under the finding's name or `title`."""
    for sequence, one in zip(case.shown, each, strict=True):
        write_heat(out / f"{case.row.key}_{finding}_{sequence}_heat.nii.gz", one, case.affine, case.row)
    if picture:
        volumes = case.batch.volumes[0][case.batch.acquired[0]].cpu().numpy()
        kind = "simulated study, " if case.row.simulated else ""
        draw_overlay(
            out / f"{case.row.key}_{finding}_heat.png",
            dict(zip(case.shown, volumes, strict=True)),
            dict(zip(case.shown, each, strict=True)),
            case.regions[finding],
            affine=case.affine,
            title=f"{title or finding} (outlined: the lesion); {kind}research only, not for diagnosis",
        )


def result_of_maps(
    gathered: Gathered, by_sequence: Gathered, *, task: str, draws: int = DRAWS, seed: int = 0
) -> TaskResult:
    """Scores of every arm, of each finding for the model and for chance, of each sequence alone, and paired tests."""
    score_all = partial(score_tables, draws=draws, seed=seed)
    ours = gathered.table(MODEL)
    others = {arm: gathered.table(arm) for arm in gathered.found if arm != MODEL}
    scores = score_all(ours, each=True)
    for arm, table in others.items():
        scores += score_all(table, each=arm == CHANCE, arm=arm)
    for sequence in sorted(by_sequence.found):
        scores += score_all(by_sequence.table(sequence), name=f"{sequence} alone")
    return TaskResult(
        task=task,
        split="",
        subjects=len(np.unique(ours.subjects)),
        studies=len(gathered.subjects),
        scores=tuple(scores),
        comparisons=compare_tables(ours, others, draws=draws, seed=seed),
        predictions=tuple(
            Prediction(
                study=study,
                probabilities={},
                labels={finding: 1.0 for finding in found},
                measures={
                    f"{finding}/{name}": value
                    for finding, its in found.items()
                    for name, value in its.items()
                    if np.isfinite(value)
                },
            )
            for study, found in gathered.found[MODEL].items()
        ),
    )


def map_notes(gathered: Gathered, cases: Cases, *, tolerance_mm: float) -> tuple[str, ...]:
    """What the scores of maps leave out, in words."""
    never = [finding for finding in cases.findings if finding not in gathered.shown]
    return (
        *((f"Never shown by a mask of this split: {', '.join(never)}.",) if never else ()),
        "Scores are of the mean of a study's maps, over the body, on the store's grid; `... alone` is one sequence's "
        "map. Chance is what the same values would get if they were dealt out over the body at random.",
        f"A hit of the pointing game is a maximum in the lesion or within {tolerance_mm:g} mm of it.",
    )
