"""Volumes that two subjects share: the same voxels, nearly the same, or mirrored; and whether a split parts them.

Same voxels are found by digest. Near copies are found in two steps. A coarse descriptor of each signature (24 mm cells,
the sequence's mean taken out, 48 principal components) is compared with every other by block matrix products; what is
alike is compared again on the 8 mm signature, moved onto one another, with the means of both sequences projected out:
brains are alike, so only what one differs in from the mean tells whether another is the same.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from tomoglot.studies.appearance import CELLS, OUTSIDE, unpack

# Made pairs and different subjects were measured for these: docs/decisions/0008.
NEAR = 0.8
# Of an image 24 x 24 cells are seen, not 24 times as many. Of 40 simulated radiographs the most alike pair had 0.89, a
# copy with noise, a shift, a mirror or half the pixels 0.997.
NEAR_IMAGE = 0.95
# Without enough volumes of a sequence for a mean, two volumes must agree outright.
NEAR_WITHOUT_MEAN = 0.995
LEAST_FOR_MEAN = 8
MOST_MEANS = 32
ALIKE = 0.6
MOST_CANDIDATES = 8
COMPONENTS = 48
COARSE = 3
ROWS_AT_ONCE = 256

Array = NDArray[np.float32]


class DuplicateRow(BaseModel):
    """Two series of two subjects that show the same.

    `kind` is `same-voxels`, `near` or `mirrored` (left and right swapped); `likeness` is the correlation that was
    found (1 for the same voxels). `leak`: the two subjects stand on two sides of the split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    likeness: float
    leak: bool
    subject: str
    study: str
    split: str | None = None
    sequence: str
    other_subject: str
    other_study: str
    other_split: str | None = None
    other_sequence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    subject: str
    study: str
    split: str | None
    sequence: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedReports:
    """Reports that several subjects share word for word: `reports` of them, in `studies`, `across` on two sides."""

    reports: int
    studies: int
    across: int


def find_duplicates(series: Path) -> list[DuplicateRow]:
    """Pairs among the rows of a series table, leaks first, then the most alike.

    Each series is paired with at most a few others: of many copies of one volume not every pair is listed, but every
    copy is in one. Memory is bounded by the descriptors (under 1 kB a series); signatures stay on the disk.
    """
    with tempfile.TemporaryFile(dir=series.parent) as scratch, duckdb.connect() as connection:
        places, cells = _load(connection, series, scratch)
        found = {(min(a, b), max(a, b)): ("same-voxels", 1.0) for a, b in _same_voxels(places)}
        if len(places) > 1:
            for a, b, mirrored, likeness in _near(places, cells):
                if likeness > found.get((a, b), ("", 0.0))[1]:
                    found[a, b] = ("mirrored" if mirrored else "near", likeness)
    rows = [_row(places[a], places[b], kind, likeness) for (a, b), (kind, likeness) in found.items()]
    return sorted(rows, key=lambda row: (not row.leak, -row.likeness, row.subject, row.study, row.sequence))


def shared_reports(accepted: Path) -> SharedReports:
    """Count reports that more than one subject has; ordinary where normal findings are dictated from a template."""
    query = """
        SELECT count(*), coalesce(sum(studies), 0), coalesce(sum((splits > 1)::INT), 0) FROM (
            SELECT count(*) studies, count(DISTINCT split) splits FROM read_parquet($path) WHERE report_digest <> ''
            GROUP BY report_digest HAVING count(DISTINCT subject) > 1)"""
    with duckdb.connect() as connection:
        reports, studies, across = connection.execute(query, {"path": str(accepted)}).fetchall()[0]
    return SharedReports(reports=int(reports), studies=int(studies), across=int(across))


def likeness(one: NDArray[np.int8], other: NDArray[np.int8], means: Sequence[Array] = ()) -> float:
    """Correlation of two signatures over the cells that both have, `other` moved to fit, `means` projected out.

    0 where they have less than half of their cells in common.
    """
    known = one != OUTSIDE
    moved = _moved(filled(other), _offset(filled(one), filled(other)))
    both = known & np.isfinite(moved)
    if both.sum() < 0.5 * max(known.sum(), (other != OUTSIDE).sum()):
        return 0.0
    base = [np.ones(int(both.sum())), *(mean[both] for mean in means)]
    basis = np.linalg.qr(np.stack(base, axis=1).astype(np.float64))[0]
    a, b = (values - basis @ (basis.T @ values) for values in (one[both].astype(np.float64), moved[both]))
    # What differs from the mean by less than one step of 254 cannot be told from rounding.
    if min(a @ a, b @ b) <= both.sum():
        return 0.0
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _load(
    connection: duckdb.DuckDBPyConnection, series: Path, scratch: object
) -> tuple[list[_Place], NDArray[np.int8]]:
    """Who and what each row is, and all signatures as one array that lies on the disk."""
    found = connection.execute(
        "SELECT subject, study, split, sequence, digest, signature FROM read_parquet($path)", {"path": str(series)}
    )
    places: list[_Place] = []
    while rows := found.fetchmany(1024):
        for *who, text in rows:
            places.append(_Place(**dict(zip(_Place.__slots__, who, strict=True))))
            scratch.write(unpack(text).tobytes())  # type: ignore[attr-defined]
    scratch.flush()  # type: ignore[attr-defined]
    shape = (len(places), CELLS, CELLS, CELLS)
    return places, np.memmap(scratch, np.int8, "r", shape=shape) if places else np.zeros(shape, np.int8)  # type: ignore[call-overload]


def _same_voxels(places: list[_Place]) -> Iterator[tuple[int, int]]:
    groups: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        groups.setdefault(place.digest, []).append(number)
    for group in groups.values():
        # One partner each, on another side of the split where there is one: a volume copied a thousand times must not
        # make a million rows.
        by_side: dict[tuple[str, str | None], int] = {}
        for number in group:
            by_side.setdefault((places[number].subject, places[number].split), number)
        for number in group if len(by_side) > 1 else ():
            mine = places[number]
            others = [other for (subject, _), other in by_side.items() if subject != mine.subject]
            if others:
                yield number, min(others, key=lambda other: (places[other].split == mine.split, other))


def _near(places: list[_Place], cells: NDArray[np.int8]) -> Iterator[tuple[int, int, bool, float]]:
    counts = Counter(place.sequence for place in places)
    common = [name for name, count in counts.most_common(MOST_MEANS) if count >= LEAST_FOR_MEAN]
    sums = {name: np.zeros((CELLS,) * 3, np.float64) for name in common}
    for place, signature in zip(places, cells, strict=True):
        if place.sequence in sums:
            sums[place.sequence] += filled(signature)
    plain, mirror = _descriptors(cells, [total / counts[name] for name, total in sums.items()])
    subjects = np.unique([place.subject for place in places], return_inverse=True)[1]
    for mirrored, others in ((False, plain), (True, mirror)):
        for a, b in _alike(plain, others, subjects):
            if places[a].digest == places[b].digest:
                continue
            one, other = np.asarray(cells[a]), np.asarray(cells[b])[:: -1 if mirrored else 1]
            means = []
            for name in {places[a].sequence, places[b].sequence} & set(sums):
                # The pair itself is taken out of the mean: else it would explain part of its own likeness.
                pair = [number for number in (a, b) if places[number].sequence == name]
                rest = sums[name] - sum(filled(np.asarray(cells[number])) for number in pair)
                means.append((rest / (counts[name] - len(pair))).astype(np.float32))
            value = likeness(one, other, means)
            near = NEAR_IMAGE if _is_image(one) or _is_image(other) else NEAR
            if value >= (near if means else NEAR_WITHOUT_MEAN):
                yield a, b, mirrored, round(value, 4)


def _is_image(signature: NDArray[np.int8]) -> bool:
    """Whether a signature is of one voxel along k, which fills two cells."""
    return int((signature != OUTSIDE).any(axis=(0, 1)).sum()) <= 2


def _descriptors(cells: NDArray[np.int8], means: Sequence[NDArray[np.float64]]) -> tuple[Array, Array]:
    """Coarse signatures without the sequences' means, as they are and mirrored: a row each, of length 1."""
    # A gain and an offset of its own for each: noise in the air around a head lifts the whole volume's floor.
    ones = coarse(np.ones((CELLS,) * 3, np.float32))
    # All means, not only its own sequence's: the same volume may stand under two names.
    basis = np.linalg.qr(np.stack([ones, *map(coarse, means)], axis=1))[0]

    def rest(number: int, turn: int) -> Array:
        values = coarse(filled(np.asarray(cells[number]))[::turn])
        return np.asarray(values - basis @ (basis.T @ values), np.float32)

    spread = np.linspace(0, len(cells) - 1, min(4096, len(cells))).astype(int)
    sample = np.stack([rest(number, 1) for number in spread])
    components = np.linalg.svd(sample.T @ sample, hermitian=True)[0][:, :COMPONENTS].astype(np.float32)
    short = [np.stack([rest(number, turn) @ components for number in range(len(cells))]) for turn in (1, -1)]
    for one in short:
        one /= np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-6)
    return short[0], short[1]


def coarse(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Means over blocks of `COARSE` cells of a signature, as one row."""
    side = CELLS // COARSE
    return values.reshape(side, COARSE, side, COARSE, side, COARSE).mean(axis=(1, 3, 5)).ravel()


def _alike(rows: Array, others: Array, subjects: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pairs (a < b) of two subjects whose descriptors point one way, a bounded number a row."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE] @ others[start:].T
        block[subjects[start : start + ROWS_AT_ONCE, None] == subjects[None, start:]] = 0.0
        for at in np.flatnonzero(block.max(axis=1) >= ALIKE):
            later = block[at, at + 1 :]
            best = np.flatnonzero(later >= ALIKE)
            if best.size > MOST_CANDIDATES:
                best = best[np.argpartition(-later[best], MOST_CANDIDATES)[:MOST_CANDIDATES]]
            yield from ((int(start + at), int(start + at + 1 + b)) for b in np.sort(best))


def filled(signature: NDArray[np.int8]) -> Array:
    """A signature as numbers; where the volume has no voxels it is as dark as the darkest twentieth of those it has.

    Black would draw the border of the volume where noise lifts the air around a head.
    """
    known = signature[signature != OUTSIDE]
    floor = np.partition(known, known.size // 20)[known.size // 20] if known.size else -127
    return np.where(signature == OUTSIDE, floor, signature).astype(np.float32)


def _offset(one: Array, other: Array) -> NDArray[np.float64]:
    """Cells by which `other` must move to fit `one` best: the peak of their cross-correlation, refined by parabolas."""
    spectra = (np.fft.rfftn(values - values.mean(), axes=(0, 1, 2)) for values in (one, other))
    first, second = spectra
    peak = np.fft.irfftn(first * second.conj(), s=one.shape, axes=(0, 1, 2))
    top = np.array(np.unravel_index(int(peak.argmax()), peak.shape))
    fine = []
    for axis, at in enumerate(top):
        line = np.take(
            peak[tuple(slice(None) if a == axis else top[a] for a in range(3))], [at - 1, at, at + 1], mode="wrap"
        )
        bend = line[0] - 2 * line[1] + line[2]
        fine.append(0.5 * (line[0] - line[2]) / bend if bend < 0 else 0.0)
    whole = np.where(top > CELLS // 2, top - CELLS, top)
    return whole + np.asarray(fine)


def _moved(values: Array, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values moved by a number of cells that need not be whole; NaN where nothing moved to."""
    return ndimage.shift(values.astype(np.float64), offset, order=1, mode="constant", cval=np.nan)


def _row(one: _Place, other: _Place, kind: str, value: float) -> DuplicateRow:
    return DuplicateRow(
        kind=kind,
        likeness=value,
        leak=one.split is not None and other.split is not None and one.split != other.split,
        subject=one.subject,
        study=one.study,
        split=one.split,
        sequence=one.sequence,
        other_subject=other.subject,
        other_study=other.study,
        other_split=other.split,
        other_sequence=other.sequence,
    )
