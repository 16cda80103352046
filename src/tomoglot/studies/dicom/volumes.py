"""Headers to volumes: which slices belong together, by geometry and acquisition and never by a file's name.

Differences that always part a series (echo, b-value, kind of image) are taken first. What may differ from slice to
slice of one volume as well (trigger time, acquisition number) parts it only where slices lie at the same positions.
Whatever does not make one straight, even, complete stack is refused with the numbers that show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.acquisition import Acquisition
from tomoglot.studies.dicom.header import Header
from tomoglot.studies.dicom.stack import COSINE, SAME_MM, Stack, axes, check_geometry, place, place_mosaic
from tomoglot.studies.study import Frame, Rejected

VOLUMETRIC = ("CT", "MR", "PT", "NM")
# A radial series has an orientation a slice; a localiser three.
_MOST_PLANES = 32
# What the words in Image Type say about what a voxel measures; other words only tell that two images differ.
_WORDS = (
    "M:magnitude P:phasemap PHASE:phasemap R:real I:imaginary WATER:water W:water FAT:fat F:fat ADC:adc FA:fa "
    "IN_PHASE:inphase IP:inphase OUT_PHASE:outphase OPP_PHASE:outphase OP:outphase TRACEW:trace"
)
_KINDS = dict(pair.split(":") for pair in _WORDS.split())
# What may tell two volumes apart that lie at the same positions, in the order in which it is believed.
_APART: tuple[Callable[[Header], Hashable], ...] = (
    lambda header: header.acquisition.temporal_position,
    lambda header: header.acquisition_number,
    lambda header: header.acquisition.trigger_ms,
    lambda header: header.acquisition.echo_ms,
    lambda header: header.acquisition.inversion_ms,
    lambda header: header.acquisition.flip_deg,
    lambda header: header.acquisition.kernel or None,
    lambda header: header.acquisition_time or None,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumePlan:
    """One volume before its pixels are read.

    `headers` and `frames` run in slice order (one of each for a mosaic); `shape` is (columns, rows, slices); `affine`
    takes voxel indices to RAS+ mm. `part` tells the volumes of one series apart: `echo2`, `b1000`, `phase3`, or
    nothing where there is one. `tilt_deg` is not nought where the stack leans and must be resampled; `part` then ends
    in `untilted`.
    """

    headers: tuple[Header, ...]
    frames: tuple[Frame, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    acquisition: Acquisition
    part: str = ""
    tilt_deg: float = 0.0


Refusal = tuple[tuple[Header, ...], Rejected]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """Volumes, and the headers that are in none with the reason."""

    volumes: tuple[VolumePlan, ...]
    refused: tuple[Refusal, ...]


def group(headers: Sequence[Header], *, accept_tilt: bool = False) -> Grouped:
    """Sort headers of any number of subjects and series into volumes. Reads nothing, and heeds no file name.

    Every header is in one volume or in one refusal; a second copy of an image is the refusal `duplicate-slice`.
    Other reasons are those of `stack.check_geometry`, `stack.place` and `stack.place_mosaic`, and:
    `unsupported-modality` (projection X-ray among them), `not-monochrome`, `missing-rescale`, `bad-scaling`,
    `mixed-orientation`, `one-position`, `repeated-positions`, `incomplete-phase`, `conflicting-copies`.
    """
    volumes: list[VolumePlan] = []
    refused: list[Refusal] = []
    for series in _by(headers, lambda header: (header.patient_id, header.study_uid, header.series_uid)).values():
        for part, members in _hard_parts(series).items():
            for name, phase in _soft_parts(members, part, refused):
                try:
                    mosaic = len(phase) == 1 and phase[0].mosaic_tiles
                    stack = place_mosaic(phase[0]) if mosaic else place(phase, accept_tilt=accept_tilt)
                    volumes.append(_plan(stack, name))
                except Rejected as error:
                    refused.append((tuple(phase), error))
    return Grouped(volumes=tuple(volumes), refused=tuple(refused))


def _plan(stack: Stack, part: str) -> VolumePlan:
    return VolumePlan(
        headers=stack.headers,
        frames=tuple(header.where for header in stack.headers),
        shape=stack.shape,
        affine=stack.affine,
        acquisition=replace(stack.headers[0].acquisition, num_slices=stack.shape[2]),
        part=_joined(part, "untilted" if stack.tilt_deg else ""),
        tilt_deg=stack.tilt_deg,
    )


def _by(headers: Iterable[Header], key: Callable[[Header], Hashable]) -> dict[Hashable, list[Header]]:
    groups: dict[Hashable, list[Header]] = {}
    for header in headers:
        groups.setdefault(key(header), []).append(header)
    return groups


def _joined(*words: str) -> str:
    return "-".join(word for word in words if word)


def _kind(header: Header) -> tuple[int, float, tuple[str, ...], str, str, bool]:
    """What is never mixed in one volume."""
    physics, mosaic = header.acquisition, bool(header.mosaic_tiles)
    b_value = -1.0 if physics.b_value is None else physics.b_value
    return physics.echo_number or 0, b_value, physics.image_type, physics.modality, header.rescale_type, mosaic


def _hard_parts(series: Sequence[Header]) -> dict[str, list[Header]]:
    """Split one series by what is never mixed in a volume; the keys name the parts, and are empty for a single one."""
    ordered = sorted(_by(series, _kind).values(), key=lambda members: _kind(members[0]))
    kinds = [_kind(members[0]) for members in ordered]
    echoes, b_values, image_types = ({kind[place] for kind in kinds} for place in range(3))
    shared = set.intersection(*(set(kind[2]) for kind in kinds))
    parts: dict[str, list[Header]] = {}
    for number, (kind, members) in enumerate(zip(kinds, ordered, strict=True), start=1):
        words = [f"echo{kind[0]}"] if len(echoes) > 1 else []
        words += [f"b{kind[1]:.0f}"] if len(b_values) > 1 and kind[1] >= 0 else []
        if len(image_types) > 1:
            words += [_KINDS[word] for word in kind[2][2:] if word in _KINDS and word not in shared][:1]
        if len(kinds) > 1 and (not words or _joined(*words) in parts):
            # Kinds that no word tells apart: numbered in an order that the files' order does not change.
            words.append(f"type{number}")
        parts[_joined(*words)] = members
    return parts


def _soft_parts(members: list[Header], part: str, refused: list[Refusal]) -> list[tuple[str, list[Header]]]:
    """Split by orientation, then by phase, with their names; what cannot be split goes to `refused`."""
    try:
        members, copies = _without_copies(members)
        if copies:
            shown = f"{len(copies)} images are second copies of one that is used (same SOP instance)"
            refused.append((tuple(copies), Rejected("duplicate-slice", shown)))
        _check_images(members)
        planes = _planes(members)
    except Rejected as error:
        refused.append((tuple(members), error))
        return []
    parts = []
    for number, plane in enumerate(planes, start=1):
        try:
            phases = _phases(plane)
        except Rejected as error:
            refused.append((tuple(plane), error))
            continue
        most = max(map(len, phases))
        for index, phase in enumerate(phases, start=1):
            if len(phase) == most:
                words = f"plane{number}" if len(planes) > 1 else "", f"phase{index}" if len(phases) > 1 else ""
                parts.append((_joined(part, *words), phase))
            else:
                shown = f"phase {index} has {len(phase)} slices, others have {most}"
                refused.append((tuple(phase), Rejected("incomplete-phase", shown)))
    return parts


def _without_copies(headers: Sequence[Header]) -> tuple[list[Header], list[Header]]:
    """Each SOP instance (and frame) once, and the copies.

    Raises:
        Rejected: `conflicting-copies` where two differ in anything but their place on disk.
    """
    first: dict[Hashable, Header] = {}
    copies = []
    for header in headers:
        # An image without a UID is a copy of none.
        known = first.setdefault((header.sop_uid or header.where, header.where.frame), header)
        if known is header:
            continue
        if replace(known, where=header.where) != header:
            raise Rejected("conflicting-copies", "two images have one SOP instance UID and different headers")
        copies.append(header)
    return list(first.values()), copies


def _check_images(headers: Sequence[Header]) -> None:
    """Raise the commonest fault that images have by themselves, with the number of images that have it.

    One faulty image refuses its volume: left out at an end of the stack, it would never be missed.
    """
    faults: Counter[tuple[str, str]] = Counter()
    for header in headers:
        try:
            _check_image(header)
        except Rejected as error:
            faults[error.reason, error.evidence] += 1
    if faults:
        (reason, evidence), count = faults.most_common(1)[0]
        raise Rejected(reason, f"{evidence}; {count} of {len(headers)} images are like that")


def _check_image(header: Header) -> None:
    modality = header.acquisition.modality
    slope, intercept = header.slope, header.intercept
    if modality not in VOLUMETRIC:
        # Not quoted: anything may stand there.
        raise Rejected("unsupported-modality", f"the modality is none of {', '.join(VOLUMETRIC)}")
    if header.samples != 1 or header.photometric != "MONOCHROME2":
        raise Rejected("not-monochrome", f"{header.samples} samples a pixel, or not MONOCHROME2")
    if modality == "CT" and (slope is None or intercept is None):
        raise Rejected("missing-rescale", "CT without rescale slope and intercept, so not known to be in HU")
    if slope == 0 or not np.isfinite([slope or 1.0, intercept or 0.0]).all():
        raise Rejected("bad-scaling", f"rescale slope {slope}, intercept {intercept}")
    if "MOSAIC" in header.acquisition.image_type and not header.mosaic_tiles:
        raise Rejected("bad-mosaic", "a mosaic that does not say of how many tiles")
    check_geometry(header)


def _planes(headers: Sequence[Header]) -> list[list[Header]]:
    """Split by orientation, within the tolerance of written cosines.

    A stack's worth of slices in each of several orientations is several volumes (a localiser of three planes); fewer
    is a series of mixed orientation, such as a radial one.
    """
    directions = np.array([header.orientation for header in headers], dtype=np.float64)
    planes: list[list[int]] = []
    for index in np.lexsort(directions.T).tolist():
        alike = (plane for plane in planes if np.abs(directions[index] - directions[plane[0]]).max() <= COSINE)
        plane = next(alike, None)
        if plane is None:
            planes.append(plane := [])
        plane.append(index)
        if len(planes) > _MOST_PLANES:
            break
    if len(planes) > 1 and min(map(len, planes)) < 3 and not headers[0].mosaic_tiles:
        many = (
            f"{len(planes)} orientations" if len(planes) <= _MOST_PLANES else f"more than {_MOST_PLANES} orientations"
        )
        raise Rejected("mixed-orientation", f"{len(headers)} slices in {many}: a localiser or a radial series")
    return [[headers[index] for index in plane] for plane in planes]


def _phases(headers: list[Header]) -> list[list[Header]]:
    """Split slices of one orientation that repeat positions into volumes; one list where none repeats.

    Raises:
        Rejected: `one-position`, or `repeated-positions` where nothing tells the repetitions apart.
    """
    heights = np.array([header.position_mm for header in headers], dtype=np.float64) @ axes(headers[0])[2]
    order = np.argsort(heights, kind="stable")
    positions = np.empty(len(headers), dtype=np.int64)
    positions[order] = np.concatenate([[0], np.cumsum(np.diff(heights[order]) > SAME_MM)])
    counts = np.bincount(positions)
    repeats = int(counts.max())
    if repeats == 1:
        return [headers]
    if len(counts) == 1 and not headers[0].mosaic_tiles:
        raise Rejected("one-position", f"all {len(headers)} slices are at one position: a cine or a repeated slice")
    for keys in [*((key,) for key in _APART), *combinations(_APART, 2)]:
        values = [tuple(key(header) for key in keys) for header in headers]
        if any(None in value for value in values) or len(set(values)) != repeats:
            continue
        if len(set(zip(values, positions.tolist(), strict=True))) == len(headers):
            phases = sorted(set(values))
            return [[header for header, value in zip(headers, values, strict=True) if value == p] for p in phases]
    return _by_turn(headers, positions, counts)


def _by_turn(headers: list[Header], positions: NDArray[np.int64], counts: NDArray[np.int64]) -> list[list[Header]]:
    """Where no tag tells repetitions apart but each position has as many: by order of instance number.

    Believed only where the numbers run volume after volume, or position after position.
    """
    repeats, least, num_positions = int(counts.max()), int(counts.min()), len(counts)
    places = [(header.instance_number, header.where.frame) for header in headers]
    if least == repeats and all(number is not None for number, _ in places) and len(set(places)) == len(places):
        turn = np.array(sorted(range(len(headers)), key=lambda index: (places[index][0] or 0, places[index][1])))
        ordered = positions[turn]
        blocks, runs = turn.reshape(repeats, num_positions), turn.reshape(num_positions, repeats)
        if (np.sort(ordered.reshape(blocks.shape), axis=1) == np.arange(num_positions)).all():
            return [[headers[index] for index in block] for block in blocks]
        if (np.ptp(ordered.reshape(runs.shape), axis=1) == 0).all():
            return [[headers[index] for index in phase] for phase in runs.T]
    shown = f"{len(headers)} slices at {num_positions} positions, {least} to {repeats} at each, which nothing parts"
    raise Rejected("repeated-positions", shown)
