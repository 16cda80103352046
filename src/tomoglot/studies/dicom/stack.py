"""Where the slices of one volume are: from DICOM's positions to one regular grid in RAS+ mm, or the numbers against it.

DICOM's patient coordinates run to the left, back and head (LPS); a position is the centre of a slice's first voxel
(PS3.3, C.7.6.2). Slices are put in order along row x column, so that the grid is always right-handed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.dicom.header import Header
from tomoglot.studies.study import Rejected

# A direction cosine is written with at least four digits; 0.001 is 0.13 mm at 128 mm from the centre.
COSINE = 1e-3
# Positions closer than this are one position: DICOM's decimal strings of one slice differ by less.
SAME_MM = 0.01
# A step may differ from the usual one by 2 % or 0.02 mm. Real scanners do: a GE series of 7 mm is uneven by 0.07 mm,
# and positions written with two decimals are off by 0.01 mm each.
STEP_SHARE, STEP_MM = 0.02, 0.02
# No slice may lie further from its place in the grid than this share of a voxel: small steps that add up are no grid.
PLACE_SHARE = 0.1
# A stack that leans by more than half a voxel over its whole height is tilted.
LEAN_SHARE, TILT_DEG = 0.5, 0.5
_LEAST_MM, _MOST_MM = 0.01, 100.0

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """Slices in order and the grid they fill; `tilt_deg` is the lean of the stack, nought where there is none."""

    headers: tuple[Header, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    tilt_deg: float = 0.0


def axes(header: Header) -> tuple[Vector, Vector, Vector]:
    """Unit vectors (LPS) along a row, down a column, and their cross product; made exactly orthogonal.

    Raises:
        Rejected: `bad-orientation` where lengths are not one or the directions not at right angles.
    """
    row, column = np.array(header.orientation, dtype=np.float64).reshape(2, 3)
    long, high, dot = float(np.linalg.norm(row)), float(np.linalg.norm(column)), float(row @ column)
    if not max(abs(long - 1), abs(high - 1), abs(dot)) <= COSINE:
        shown = f"direction cosines of length {long:.4f} and {high:.4f} whose product is {dot:.4f}, wanted 1, 1 and 0"
        raise Rejected("bad-orientation", shown)
    row = row / long
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)


def check_geometry(header: Header) -> None:
    """See that one image says where it is.

    Raises:
        Rejected: `missing-geometry`, `bad-orientation`, `bad-spacing` or `wrong-dimension`.
    """
    tags = {"Position": header.position_mm, "Orientation": header.orientation, "Pixel Spacing": header.spacing_mm}
    for name, value in tags.items():
        if value is None or not np.isfinite(value).all():
            raise Rejected("missing-geometry", f"no {name}, or one that is not finite")
    if min(header.rows, header.columns) < 2:
        raise Rejected("wrong-dimension", f"{header.rows} x {header.columns} pixels, wanted at least 2 x 2")
    _check_sizes(*_spacing(header))
    axes(header)


def place(headers: Sequence[Header], *, accept_tilt: bool = False) -> Stack:
    """Order slices of one orientation that lie at distinct positions, and give the grid they fill.

    The step is the whole way from the first slice to the last over the number of steps, so that rounding in single
    positions does not add up. A tilted stack's affine leans as the slices do.

    Raises:
        Rejected: `too-few-slices`, `inconsistent-slices`, `missing-slice`, `uneven-steps`, `shifted-slices`,
            `bad-spacing` or `gantry-tilt`.
    """
    if len(headers) < 2:
        raise Rejected("too-few-slices", f"{len(headers)} slice, wanted at least 2: a localiser or a single image")
    _check_alike(headers)
    normal = axes(headers[0])[2]
    positions = np.array([header.position_mm for header in headers], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    _check_steps(np.diff(positions @ normal), headers[0])
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    _check_sizes(float(step @ normal))
    pixel_mm = min(_spacing(headers[0]))
    _check_line(positions, step, normal, pixel_mm)
    tilt_deg = _tilt(step, normal, len(positions), pixel_mm)
    if tilt_deg and not accept_tilt:
        shown = f"the stack leans by {tilt_deg:.1f} degrees against its slices; ask for tilted stacks to be resampled"
        raise Rejected("gantry-tilt", shown)
    _check_stated_tilt(headers, normal, tilt_deg)
    return Stack(
        headers=tuple(headers[index] for index in order),
        shape=(headers[0].columns, headers[0].rows, len(headers)),
        affine=_affine(headers[0], step, positions[0]),
        tilt_deg=tilt_deg,
    )


def mosaic_side(header: Header) -> int:
    """Number of tiles along a side of a Siemens mosaic.

    Raises:
        Rejected: `bad-mosaic` where the sheet cannot be cut into that many tiles.
    """
    tiles = header.mosaic_tiles or 0
    side = math.isqrt(max(tiles - 1, 0)) + 1
    if tiles < 2 or header.rows % side or header.columns % side or min(header.rows, header.columns) < 2 * side:
        raise Rejected("bad-mosaic", f"{tiles} tiles do not fit {header.rows} x {header.columns} pixels")
    return side


def mosaic_reversed(header: Header) -> bool:
    """Whether the tiles of a mosaic run against row x column.

    Raises:
        Rejected: `bad-mosaic` where the header does not say which way they run: foot could be taken for head.
    """
    if header.slice_normal is None:
        raise Rejected("bad-mosaic", "no slice normal (Siemens CSA header), so the order of the tiles is unknown")
    along = float(np.dot(header.slice_normal, axes(header)[2]))
    if not abs(abs(along) - 1) <= COSINE:
        raise Rejected("bad-mosaic", f"the tiles run at {along:.3f} of the slice normal, wanted 1 or -1")
    return along < 0


def place_mosaic(header: Header) -> Stack:
    """Grid of a Siemens mosaic: one image that holds all the slices of a volume as tiles.

    The position is that of a slice as large as the whole sheet, so half the difference in size is added to it.

    Raises:
        Rejected: `bad-mosaic`, `bad-spacing` or `missing-geometry`.
    """
    side, num_slices = mosaic_side(header), header.mosaic_tiles or 0
    if header.slice_step_mm is None:
        raise Rejected("missing-geometry", "a mosaic without Spacing Between Slices")
    _check_sizes(header.slice_step_mm)
    row, column, normal = axes(header)
    rows_mm, columns_mm = _spacing(header)
    shape = (header.columns // side, header.rows // side, num_slices)
    step = normal * header.slice_step_mm
    corner = np.array(header.position_mm) - step * (num_slices - 1) * mosaic_reversed(header)
    corner += (row * columns_mm * (header.columns - shape[0]) + column * rows_mm * (header.rows - shape[1])) / 2
    return Stack(headers=(header,), shape=shape, affine=_affine(header, step, corner))


def _affine(header: Header, step: Vector, corner: Vector) -> NDArray[np.float64]:
    row, column, _ = axes(header)
    rows_mm, columns_mm = _spacing(header)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * columns_mm, column * rows_mm, step, corner])
    affine[:2] *= -1  # LPS to RAS
    return affine


def _spacing(header: Header) -> tuple[float, float]:
    assert header.spacing_mm is not None, "checked by check_geometry"
    return header.spacing_mm


def _check_sizes(*sizes_mm: float) -> None:
    if not all(_LEAST_MM <= size <= _MOST_MM for size in sizes_mm):
        shown = " x ".join(f"{size:g}" for size in sizes_mm)
        raise Rejected("bad-spacing", f"voxels of {shown} mm, wanted {_LEAST_MM:g} to {_MOST_MM:g}")


def _check_alike(headers: Sequence[Header]) -> None:
    """What one volume has one of. Slices of two echoes, each half missing, may well lie evenly among one another."""
    physics = [header.acquisition for header in headers]
    kinds: dict[str, set[object]] = {
        "matrix sizes": {(header.rows, header.columns) for header in headers},
        "frames of reference": {header.frame_of_reference for header in headers},
        "temporal positions": {one.temporal_position for one in physics},
        "kernels": {one.kernel for one in physics},
    }
    for what, found in kinds.items():
        if len(found) > 1:
            raise Rejected("inconsistent-slices", f"{len(found)} {what} in one volume of {len(headers)} slices")
    spacing = np.array([header.spacing_mm for header in headers], dtype=np.float64)
    if (np.ptp(spacing, axis=0) > 1e-4 * spacing[0]).any():
        (a, b), (c, d) = spacing.min(axis=0), spacing.max(axis=0)
        raise Rejected("inconsistent-slices", f"pixels from {a:g} x {b:g} to {c:g} x {d:g} mm in one volume")
    echoes = [one.echo_ms or 0.0 for one in physics]
    if max(echoes) - min(echoes) > max(0.5, 0.02 * max(echoes)):
        raise Rejected("inconsistent-slices", f"echo times from {min(echoes):g} to {max(echoes):g} ms in one volume")


def _check_steps(steps: Vector, header: Header) -> None:
    usual, least, most = float(np.median(steps)), float(steps.min()), float(steps.max())
    allowed = max(STEP_MM, STEP_SHARE * usual)
    # A gap of whole steps is a slice that is not there; where most steps are gaps, the least tells what a step is.
    for unit in (usual, least) if usual < 4 * least else (usual,):
        times = np.rint(steps / unit)
        if times.max() >= 2 and (np.abs(steps - times * unit) <= np.maximum(allowed, STEP_SHARE * steps)).all():
            shown = f"{int((times - 1).sum())} of {int(times.sum()) + 1} slices are missing: after slice "
            at = int(np.argmax(times >= 2))
            shown += f"{at + 1} the step is {steps[at]:.2f} mm, elsewhere {unit:.2f} mm"
            raise Rejected("missing-slice", shown)
    if max(most - usual, usual - least) > allowed:
        shown = f"steps run from {least:.3f} to {most:.3f} mm, {allowed:.3f} mm from the usual {usual:.3f} is allowed"
        raise Rejected("uneven-steps", shown)
    # Every second slice may be missing, which positions alone cannot show. Some vendors write the gap between slices
    # as the step, which is less than a slice is thick.
    stated, thickness = header.slice_step_mm or 0.0, header.thickness_mm or 0.0
    if stated >= 0.99 * thickness > 0:
        gap = round(usual / stated)
        if gap >= 2 and abs(usual - gap * stated) <= allowed:
            shown = f"slices are {usual:.2f} mm apart where the header says {stated:.2f} mm: {gap - 1} of {gap} missing"
            raise Rejected("missing-slice", shown)


def _check_line(positions: Vector, step: Vector, normal: Vector, pixel_mm: float) -> None:
    """Every slice lies where a straight, even stack has it."""
    off = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    along = off @ normal
    across = np.linalg.norm(off - along[:, None] * normal, axis=1)
    for reason, distance, size in (
        ("uneven-steps", np.abs(along), step @ normal),
        ("shifted-slices", across, pixel_mm),
    ):
        worst, allowed = int(distance.argmax()), max(STEP_MM, PLACE_SHARE * float(size))
        if distance[worst] > allowed:
            shown = f"slice {worst + 1} of {len(positions)} lies {distance[worst]:.3f} mm from its place in an even, "
            raise Rejected(reason, shown + f"straight stack, {allowed:.3f} mm is allowed")


def _tilt(step: Vector, normal: Vector, num_slices: int, pixel_mm: float) -> float:
    """Lean of the stack in degrees, 0.0 where the whole of it stays within half a pixel."""
    along = float(step @ normal)
    across = float(np.linalg.norm(step - along * normal))
    return math.degrees(math.atan2(across, along)) if across * (num_slices - 1) > LEAN_SHARE * pixel_mm else 0.0


def _check_stated_tilt(headers: Sequence[Header], normal: Vector, tilt_deg: float) -> None:
    """A tilt that the header states must show in orientation or positions, or the one or the other is wrong."""
    stated = max(abs(header.tilt_deg or 0.0) for header in headers)
    upright = abs(float(normal[2])) >= math.cos(math.radians(TILT_DEG))
    derived = "DERIVED" in headers[0].acquisition.image_type
    if stated > TILT_DEG and not tilt_deg and upright and not derived:
        shown = f"the header states a tilt of {stated:.1f} degrees that neither orientation nor positions show, so "
        raise Rejected("gantry-tilt", shown + "where the slices are is not known")
