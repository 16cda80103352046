"""The checks in order: each series is read strictly, the mask must fit, and one bad study never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from tomoglot.studies.lesion import renumber
from tomoglot.studies.nifti import read_nifti
from tomoglot.studies.pool import WorkerDied, each
from tomoglot.studies.sequence import canonical_sequence
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.split import check_split
from tomoglot.studies.study import Rejected, Series, Study, Volume
from tomoglot.studies.table import write_table

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One study after the checks: what is left of it, its voxels, and what was refused.

    `volumes` is empty where the study is rejected as a whole; `study.series` holds the good series only.
    """

    study: Study
    volumes: dict[str, Volume] = field(default_factory=dict)
    mask: Volume | None = None
    rejected: tuple[RejectedRow, ...] = ()


class AcceptedRow(BaseModel):
    """One line of the accepted table: what a study holds, without its voxels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    study: str
    split: str | None = None
    simulated: bool = False
    sequences: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    spacings_mm: tuple[tuple[float, float, float], ...]
    has_report: bool
    has_mask: bool
    labels: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """Where the two tables are, and how many rows each has."""

    accepted: Path
    rejected: Path
    num_accepted: int
    num_rejected: int


Looked = tuple[AcceptedRow | None, tuple[RejectedRow, ...]]


def examine(study: Study) -> Examined:
    """Read every series of a study strictly, drop the bad ones, and check that the mask fits.

    A study with no good series left is rejected as a whole: no volumes, and a row `no-usable-series`. A mask that is
    refused costs the mask, not the study.
    """
    volumes: dict[str, Volume] = {}
    good: list[Series] = []
    rejected: list[RejectedRow] = []
    for series in study.series:
        try:
            sequence = canonical_sequence(series.sequence)
            if sequence in volumes:
                raise Rejected("duplicate-series", f"{series.path.name}: another good series is already its {sequence}")
            volumes[sequence] = _read(series.path)
            good.append(Series(sequence=sequence, path=series.path))
        except Rejected as error:
            rejected.append(_row(study, error, file=series.path.name, sequence=series.sequence))
    mask = None
    if volumes and study.mask is not None:
        try:
            mask = _read_mask(study.mask, volumes, labels=study.mask_labels)
        except Rejected as error:
            rejected.append(_row(study, error, file=study.mask.name, sequence="mask"))
    if not volumes:
        evidence = f"{len(study.series)} series given, none of them good"
        rejected.append(_row(study, Rejected("no-usable-series", evidence)))
    left = replace(study, series=tuple(good), mask=study.mask if mask is not None else None)
    return Examined(study=left, volumes=volumes, mask=mask, rejected=tuple(rejected))


def curate(sources: Sources, out: Path, *, workers: int = 1, progress: Progress | None = None) -> Curated:
    """Examine every study and write `accepted.parquet` and `rejected.parquet` in `out`; no voxels are stored.

    With `workers` above 1 each study is examined in another process; a study whose process dies is rejected as
    `worker-died` and the others go on. Rows keep the order of the sources.

    Raises:
        ValueError: the sources' own split puts one subject on two sides.
    """
    check_split((study.subject, study.split) for study in sources.studies if study.split is not None)
    looked: dict[int, Looked] = {}
    for place, result in look_at_all(sources.studies, look, workers=workers):
        looked[place] = result
        if progress is not None:
            progress(len(looked), len(sources.studies))
    accepted = [row for place in sorted(looked) if (row := looked[place][0]) is not None]
    rejected = [*sources.rejected, *(row for place in sorted(looked) for row in looked[place][1])]
    paths = out / "accepted.parquet", out / "rejected.parquet"
    write_table(accepted, paths[0], AcceptedRow)
    write_table(rejected, paths[1], RejectedRow)
    return Curated(accepted=paths[0], rejected=paths[1], num_accepted=len(accepted), num_rejected=len(rejected))


def look(study: Study) -> Looked:
    """Examine a study and keep the rows only, so that voxels never cross a process."""
    found = examine(study)
    if not found.volumes:
        return None, found.rejected
    grids = [found.volumes[series.sequence].grid for series in found.study.series]
    row = AcceptedRow(
        subject=study.subject,
        study=study.study,
        split=study.split,
        simulated=study.simulated,
        sequences=tuple(series.sequence for series in found.study.series),
        shapes=tuple(grid.shape for grid in grids),
        spacings_mm=tuple(grid.spacing_mm for grid in grids),
        has_report=study.report is not None,
        has_mask=found.mask is not None,
        labels=dict(study.labels),
    )
    return row, found.rejected


def look_at_all(
    studies: Sequence[Study], one: Callable[[Study], Looked], *, workers: int
) -> Iterator[tuple[int, Looked]]:
    """Give (place, result) for every study as it is done; `one` must be a function that pickles.

    A study that kills its process, twice, is rejected.
    """
    for (place, study), result in each(partial(_placed, one), enumerate(studies), workers=workers):
        if isinstance(result, WorkerDied):
            evidence = "the process that read this study crashed or was ended from outside; too little memory?"
            result = None, (_row(study, Rejected("worker-died", evidence)),)
        yield place, result


def _placed(one: Callable[[Study], Looked], job: tuple[int, Study]) -> Looked:
    return one(job[1])


def _read(path: Path, *, allow_constant: bool = False) -> Volume:
    try:
        return read_nifti(path, allow_constant=allow_constant)
    except MemoryError as error:
        raise Rejected("out-of-memory", f"{path.name}: does not fit into the memory that is free") from error


def _read_mask(path: Path, volumes: dict[str, Volume], *, labels: Mapping[int, str]) -> Volume:
    """Mask with whole labels from 0 to 255 whose field of view meets that of a series, in our numbers."""
    mask = _read(path, allow_constant=True)
    lowest, highest = float(mask.voxels.min()), float(mask.voxels.max())
    if lowest < 0 or highest > 255 or not np.array_equal(mask.voxels, np.round(mask.voxels)):
        raise Rejected("bad-mask", f"{path.name}: values from {lowest:g} to {highest:g}, wanted whole labels 0 to 255")
    if not any(_meet(mask, volume) for volume in volumes.values()):
        raise Rejected("mask-elsewhere", f"{path.name}: shares no space with any of the {len(volumes)} good series")
    return Volume(voxels=renumber(mask.voxels.astype(np.uint8), labels), affine=mask.affine)


def _meet(one: Volume, other: Volume) -> bool:
    if one.grid.same_as(other.grid):
        return True
    a, b = one.grid.corners_mm(), other.grid.corners_mm()
    return bool((np.maximum(a.min(axis=0), b.min(axis=0)) < np.minimum(a.max(axis=0), b.max(axis=0))).all())


def _row(study: Study, error: Rejected, *, file: str = "", sequence: str = "") -> RejectedRow:
    return RejectedRow.of(error, subject=study.subject, study=study.study, sequence=sequence, file=file)
