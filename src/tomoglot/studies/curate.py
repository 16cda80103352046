"""The checks in order: each series is read strictly, the mask must fit, and one bad study never stops the others.

`curate` keeps a journal beside its tables: killed at any moment and run again it goes on, with the same result.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from tomoglot.studies.appearance import SeriesRow, describe, picture, reduce
from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.cluster import each_anywhere
from tomoglot.studies.duplicates import DuplicateRow, find_duplicates
from tomoglot.studies.journal import Journal, fingerprint
from tomoglot.studies.lesion import renumber
from tomoglot.studies.nifti import read_nifti
from tomoglot.studies.pool import WorkerDied
from tomoglot.studies.radiograph import read_radiograph
from tomoglot.studies.sequence import canonical_sequence
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.split import check_split
from tomoglot.studies.stated import read_series
from tomoglot.studies.study import Rejected, Series, Study, Volume
from tomoglot.studies.table import write_table

Progress = Callable[[int, int], None]
JOURNAL, PICTURES = "curation.journal", "pictures"
ACCEPTED, REJECTED, SERIES, DUPLICATES = (
    f"{name}.parquet" for name in ("accepted", "rejected", "series", "duplicates")
)
# What the journal's lines hold: a line of another version is computed again.
VERSION = 1
# Refusals that another run, with more memory, may not repeat: they are not kept.
PASSING = frozenset({"worker-died", "out-of-memory"})


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
    """One line of the accepted table: what a study holds, without its voxels.

    `report_digest` is the same for two reports that differ in case and spaces only.
    """

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
    report_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """Where the tables are, how many rows each has, and how many studies an earlier run had done (`num_kept`).

    `num_leaks` counts duplicates whose two subjects stand on two sides of the split.
    """

    accepted: Path
    rejected: Path
    series: Path
    duplicates: Path
    num_accepted: int
    num_rejected: int
    num_duplicates: int
    num_leaks: int
    num_kept: int


class Looked(BaseModel):
    """What is kept of a study that was examined: rows, and a picture in small (PNG, base64)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accepted: AcceptedRow | None = None
    rejected: tuple[RejectedRow, ...] = ()
    series: tuple[SeriesRow, ...] = ()
    picture: str = ""


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
                raise Rejected("duplicate-series", f"another good series is already this study's {sequence}")
            volumes[sequence] = _read_series(series)
            good.append(replace(series, sequence=sequence))
        except Rejected as error:
            # The names of raw DICOM files may name a person: their alias stands for them.
            file = series.alias if series.frames else series.path.name
            rejected.append(_row(study, error, file=file, sequence=series.sequence))
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


def curate(
    sources: Sources,
    out: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Curated:
    """Examine every study and write tables and small pictures in `out`; no voxels are stored.

    `accepted.parquet` has a row a study, `rejected.parquet` one for each thing refused, `series.parquet` the measures
    of each good series, `duplicates.parquet` pairs of series of two subjects that show the same. Rows keep the order
    of the sources, whatever was done when and where.

    With `workers` above 1 studies are examined in that many processes; with a `scheduler` on Dask (an address, or
    "local" for a cluster of `workers` processes here). A study whose process dies is rejected as `worker-died` and the
    others go on. Killed and run again, it goes on where it stopped; a study is examined again when its files changed.

    Raises:
        ValueError: the sources' own split puts one subject on two sides, another run writes this folder, or the
            scheduler cannot be reached.
    """
    check_split((study.subject, study.split) for study in sources.studies if study.split is not None)
    keys = [fingerprint(study, version=VERSION) for study in sources.studies]
    with closing(Journal(out / JOURNAL, keys=keys)) as journal:
        todo = [place for place, key in enumerate(keys) if key not in journal]
        kept, died = len(keys) - len(todo), dict[str, Any]()
        if progress is not None:
            progress(kept, len(keys))
        looked = look_at_all([sources.studies[place] for place in todo], look, workers=workers, scheduler=scheduler)
        with closing(looked):
            for done, (place, result) in enumerate(looked, start=kept + 1):
                _keep(result, key=keys[todo[place]], out=out, journal=journal, died=died)
                if progress is not None:
                    progress(done, len(keys))
        return _tables(sources, out, _Results(keys, journal, died), num_kept=kept)


def _keep(result: Looked, *, key: str, out: Path, journal: Journal, died: dict[str, Any]) -> None:
    """Write a study's picture, then its line: what the journal says is done has its picture."""
    if result.picture:
        write_bytes(out / PICTURES / f"{key[:16]}.png", base64.b64decode(result.picture))
    row = result.model_copy(update={"picture": f"{key[:16]}.png" if result.picture else ""}).model_dump(mode="json")
    if any(refused.reason in PASSING for refused in result.rejected):
        died[key] = row
    else:
        journal.add(key, row)


@dataclass(frozen=True, slots=True)
class _Results:
    """Every result in the order of the sources, read from the disk each time: a cohort need not fit into memory."""

    keys: list[str]
    journal: Journal
    passing: Mapping[str, Any]

    def __iter__(self) -> Iterator[Looked]:
        for key in self.keys:
            yield from map(Looked.model_validate, self.journal.read([key]))
            if key in self.passing:
                yield Looked.model_validate(self.passing[key])


def _tables(sources: Sources, out: Path, results: _Results, *, num_kept: int) -> Curated:
    paths = {name: out / name for name in (ACCEPTED, REJECTED, SERIES, DUPLICATES)}
    accepted = write_table((one.accepted for one in results if one.accepted), paths[ACCEPTED], AcceptedRow)
    refused = (row for rows in (sources.rejected, *_refused(results)) for row in rows)
    rejected = write_table(refused, paths[REJECTED], RejectedRow)
    named = (row.model_copy(update={"picture": f"{PICTURES}/{one.picture}"}) for one in results for row in one.series)
    write_table(named, paths[SERIES], SeriesRow)
    pairs = find_duplicates(paths[SERIES])
    write_table(pairs, paths[DUPLICATES], DuplicateRow)
    kept = {key[:16] for key in results.keys}
    for file in (out / PICTURES).glob("*.png"):
        if file.stem not in kept:
            file.unlink()
    return Curated(
        accepted=paths[ACCEPTED],
        rejected=paths[REJECTED],
        series=paths[SERIES],
        duplicates=paths[DUPLICATES],
        num_accepted=accepted,
        num_rejected=rejected,
        num_duplicates=len(pairs),
        num_leaks=sum(pair.leak for pair in pairs),
        num_kept=num_kept,
    )


def _refused(results: _Results) -> Iterator[tuple[RejectedRow, ...]]:
    return (one.rejected for one in results)


def look(study: Study) -> Looked:
    """Examine a study and keep the rows and a small picture only, so that voxels never cross a process."""
    try:
        found = examine(study)
        return kept_of(study, found) if found.volumes else Looked(rejected=found.rejected)
    except (ValueError, ArithmeticError, OSError, MemoryError) as error:
        # The message may hold a path; its kind may not.
        reason = "out-of-memory" if isinstance(error, MemoryError) else "cannot-be-processed"
        return Looked(rejected=(_row(study, Rejected(reason, f"{type(error).__name__} while it was read")),))


def accepted_of(study: Study, found: Examined) -> AcceptedRow:
    """The line of a study of which something was found good; what it says of the study is what `study` says."""
    volumes = [found.volumes[series.sequence] for series in found.study.series]
    return AcceptedRow(
        subject=study.subject,
        study=study.study,
        split=study.split,
        simulated=study.simulated,
        sequences=tuple(series.sequence for series in found.study.series),
        shapes=tuple(volume.grid.shape for volume in volumes),
        spacings_mm=tuple(volume.grid.spacing_mm for volume in volumes),
        has_report=study.report is not None,
        has_mask=found.mask is not None,
        labels=dict(study.labels),
        report_digest="" if study.report is None else _digest_text(study.report.text),
    )


def kept_of(study: Study, found: Examined) -> Looked:
    """Rows and picture of a study of which something was found good; what they say of it is what `study` says."""
    reduced = {series.sequence: reduce(found.volumes[series.sequence]) for series in found.study.series}
    said = {"split": study.split, "simulated": study.simulated}
    series = tuple(
        describe(one, subject=study.subject, study=study.study, sequence=name).model_copy(update={**said, "tile": tile})
        for tile, (name, one) in enumerate(reduced.items())
    )
    strips = base64.b64encode(picture(list(reduced.values()))).decode()
    return Looked(accepted=accepted_of(study, found), rejected=found.rejected, series=series, picture=strips)


def look_at_all(
    studies: Sequence[Study], one: Callable[[Study], Looked], *, workers: int, scheduler: str | None = None
) -> Generator[tuple[int, Looked], None, None]:
    """Give (place, result) for every study as it is done; `one` must be a function that pickles.

    A study that kills its process, twice, is rejected.
    """
    done = each_anywhere(partial(_placed, one), enumerate(studies), workers=workers, scheduler=scheduler)
    with closing(done):
        for (place, study), result in done:
            if isinstance(result, WorkerDied):
                evidence = "the process that read this study crashed or was ended from outside; too little memory?"
                result = Looked(rejected=(_row(study, Rejected("worker-died", evidence)),))
            yield place, result


def _placed(one: Callable[[Study], Looked], job: tuple[int, Study]) -> Looked:
    return one(job[1])


def _digest_text(text: str) -> str:
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def _read_series(series: Series) -> Volume:
    try:
        if not series.frames:
            return read_series(series)
        from tomoglot.studies.dicom.pixels import read_volume

        return read_volume(series.frames, resample_tilt=series.untilt)
    except MemoryError as error:
        raise Rejected("out-of-memory", "does not fit into the memory that is free") from error


def _read(path: Path, *, allow_constant: bool = False, flat: bool = False) -> Volume:
    try:
        reader = read_radiograph if flat else read_nifti
        return reader(path, allow_constant=allow_constant)
    except MemoryError as error:
        raise Rejected("out-of-memory", f"{path.name}: does not fit into the memory that is free") from error


def _read_mask(path: Path, volumes: dict[str, Volume], *, labels: Mapping[int, str]) -> Volume:
    """Mask with whole labels from 0 to 255 whose field of view meets that of a series, in our numbers."""
    mask = _read(path, allow_constant=True, flat=all(volume.grid.is_flat for volume in volumes.values()))
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
