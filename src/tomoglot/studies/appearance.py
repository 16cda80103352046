"""What a volume looks like in small: measures, a histogram, three slices, and a signature that finds its copies.

All of it is computed once, while the volume is in memory, so that a page about a cohort and a search for duplicates
never read a volume again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from tomoglot.geometry import spacing_mm, to_ras
from tomoglot.studies.study import Volume

# 24 cells of 8 mm hold a head, and the middle of a chest. Measured (docs/decisions/0008): coarser cells lose what
# tells one brain from another of the same template, finer ones change when a volume is resampled.
CELLS = 24
CELL_MM = 8.0
REDUCED_MM = 4.0
OUTSIDE = -128
BINS, OTSU_BINS = 32, 64
# Medians are read off counts: exact to 1/4096 of the range, and an eighth of the time of sorting.
FINE_BINS = 4096
TILE = 96
SHOWN_PERCENTILES = (0.5, 99.5)


class SeriesRow(BaseModel):
    """One line of the series table: what one good series measures, in the order of the accepted table.

    `digest` is of the voxels turned to RAS+, whatever their stored axes and number type. `low` and `high` are the 0.5
    and 99.5 percentiles between which `histogram` counts shares. `foreground` is the share of voxels above Otsu's
    threshold, `contrast` how far the medians of foreground and background lie apart, in spreads of the background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    study: str
    split: str | None = None
    simulated: bool = False
    sequence: str
    picture: str = ""
    tile: int = 0
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    digest: str
    low: float
    high: float
    foreground: float
    contrast: float
    histogram: tuple[float, ...]
    signature: str


def digest_voxels(voxels: NDArray[np.generic]) -> str:
    """SHA-256 of shape and values as float32, slab by slab, so that no second copy of the volume is made."""
    whole = hashlib.sha256(str(voxels.shape).encode())
    for slab in voxels:
        # Zero has two signs, which are one value.
        whole.update((slab.astype("<f4") + np.float32(0)).tobytes())
    return whole.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduced:
    """A volume in RAS+ and what is taken of it once: about 4 mm blocks from 0 to 1, their counts, where the middle is.

    `low` and `high` are what became 0 and 1, `threshold` Otsu's, `middle` that of the blocks above it.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    unit: NDArray[np.float32]
    blocks: NDArray[np.int64]
    counts: NDArray[np.int64]
    low: float
    high: float
    threshold: float
    middle: NDArray[np.float64]


def reduce(volume: Volume) -> Reduced:
    """Turn a volume (any finite numbers, at least one voxel along each axis) to RAS+ and take its means and counts."""
    voxels, affine = to_ras(volume.voxels, volume.affine)
    means, blocks = _means(voxels, affine)
    low, high = (float(value) for value in np.percentile(means, SHOWN_PERCENTILES))
    unit = np.clip((means - low) / max(high - low, 1e-12), 0.0, 1.0)
    places = np.minimum((unit * FINE_BINS).astype(np.int32), FINE_BINS - 1)
    counts = np.bincount(places.ravel(), minlength=FINE_BINS)
    threshold = _otsu(counts.reshape(OTSU_BINS, -1).sum(axis=1))
    return Reduced(
        voxels=voxels,
        affine=affine,
        unit=unit,
        blocks=blocks,
        counts=counts,
        low=low,
        high=high,
        threshold=threshold,
        middle=_middle(unit >= threshold),
    )


def describe(reduced: Reduced, *, subject: str, study: str, sequence: str) -> SeriesRow:
    """Measure one volume."""
    inside, outside = reduced.counts.copy(), reduced.counts.copy()
    parting = round(reduced.threshold * FINE_BINS)
    inside[:parting], outside[parting:] = 0, 0
    spread = apart = 0.0
    if inside.any() and outside.any():
        background = _median(outside)
        apart = _median(inside) - background
        spread = 1.4826 * _median(np.bincount(np.abs(np.arange(FINE_BINS) - round(background)), weights=outside))
    shares = reduced.counts.reshape(BINS, -1).sum(axis=1) / reduced.unit.size
    i, j, k = reduced.voxels.shape
    return SeriesRow(
        subject=subject,
        study=study,
        sequence=sequence,
        shape=(i, j, k),
        spacing_mm=spacing_mm(reduced.affine),
        digest=digest_voxels(reduced.voxels),
        low=reduced.low,
        high=reduced.high,
        foreground=float(inside.sum() / reduced.unit.size),
        # A background cut to one value (a stripped skull) has no spread: the histogram's bin stands for it.
        contrast=apart / max(spread, FINE_BINS / BINS),
        histogram=tuple(round(float(share), 5) for share in shares),
        signature=pack(_signature(reduced)),
    )


def pack(signature: NDArray[np.int8]) -> str:
    """A signature as text."""
    return base64.b64encode(zlib.compress(signature.tobytes(), 6)).decode()


def unpack(text: str) -> NDArray[np.int8]:
    """A signature of `CELLS` cubed cells from its text: -127 to 127, `OUTSIDE` where the volume has no voxels."""
    cells = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.int8)
    return cells.reshape(CELLS, CELLS, CELLS)


def picture(volumes: Sequence[Reduced]) -> bytes:
    """PNG of one strip a volume, below one another: axial, coronal and sagittal, `TILE` x `TILE` pixels each.

    Shown as on a viewing station: axial and coronal with the subject's right on the left, sagittal with the front on
    the left; front or head up; true to scale in mm; planes through the middle of what is above Otsu's threshold.
    """
    strips = np.concatenate([_strip(volume) for volume in volumes])
    buffer = io.BytesIO()
    # The least compression: a fifth larger than the best, at a seventh of its time.
    Image.fromarray(strips).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _means(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Means of whole blocks of about 4 mm, and how many voxels a block has; what fills no block is left out."""
    blocks = np.maximum(1, np.round(REDUCED_MM / np.asarray(spacing_mm(affine)))).astype(np.int64)
    blocks = np.minimum(blocks, voxels.shape)
    (a, b, c), (i, j, k) = blocks, np.asarray(voxels.shape) // blocks
    whole = voxels[: i * a, : j * b, : k * c].reshape(i, a, j, b, k, c)
    return whole.mean(axis=(1, 3, 5), dtype=np.float32), blocks


def _otsu(counts: NDArray[np.int64]) -> float:
    """Threshold that parts values from 0 to 1, counted in bins, into two classes furthest apart (Otsu 1979)."""
    middles = (np.arange(counts.size) + 0.5) / counts.size
    weight, moment = np.cumsum(counts), np.cumsum(counts * middles)
    both = weight * (weight[-1] - weight)
    between = (moment[-1] * weight / weight[-1] - moment) ** 2 / np.maximum(both, 1)
    return float((1 + np.argmax(np.where(both > 0, between, -1.0))) / counts.size)


def _median(counts: NDArray[np.number]) -> float:
    """Number of the bin that holds the median."""
    below = np.cumsum(counts)
    return float(np.searchsorted(below, below[-1] / 2))


def _signature(reduced: Reduced) -> NDArray[np.int8]:
    """The volume on a cube of `CELLS` cells of `CELL_MM` around the middle of its foreground, from -127 to 127.

    A gain, an offset, another spacing, background cut off and a shift leave it nearly as it is.
    """
    ratio = CELL_MM / (np.asarray(spacing_mm(reduced.affine)) * reduced.blocks)
    smooth = ndimage.gaussian_filter(reduced.unit, 0.425 * np.sqrt(np.maximum(ratio**2 - 1.0, 0.0)), truncate=2.5)
    corner = reduced.middle - (CELLS - 1) / 2 * ratio
    flat, depth = [axis for axis in range(3) if smooth.shape[axis] == reduced.voxels.shape[axis] == 1], 2
    for axis in flat:
        # An image has no depth: it fills the two cells of the middle, whatever the step along its one voxel.
        smooth, ratio[axis], corner[axis] = np.repeat(smooth, depth, axis=axis), 1.0, 1.0 - CELLS / 2
    cells = ndimage.affine_transform(smooth, ratio, corner, output_shape=(CELLS,) * 3, order=1, cval=np.nan)
    filled = np.round(np.nan_to_num(cells) * 254.0 - 127.0)
    return np.where(np.isnan(cells), OUTSIDE, filled).astype(np.int8)


def _middle(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centre of mass, one axis after another; the middle of the volume where nothing is inside."""
    middle = []
    for axis, size in enumerate(inside.shape):
        share = np.count_nonzero(inside, axis=tuple(other for other in range(3) if other != axis))
        middle.append(share @ np.arange(size) / share.sum() if share.any() else (size - 1) / 2)
    return np.asarray(middle)


def _strip(reduced: Reduced) -> NDArray[np.uint8]:
    voxels, step = reduced.voxels, np.asarray(spacing_mm(reduced.affine))
    at = np.round((reduced.middle + 0.5) * reduced.blocks - 0.5).astype(int)
    largest_mm = float((np.asarray(voxels.shape) * step).max())
    tiles = []
    for across, up, along in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        if 1 in (voxels.shape[across], voxels.shape[up]):
            # An image from its edge is a line.
            tiles.append(np.zeros((TILE, TILE), np.uint8))
            continue
        plane = np.take(voxels, at[along], axis=along).astype(np.float32)[::-1, ::-1].T
        unit = (plane - reduced.low) / max(reduced.high - reduced.low, 1e-12)
        grey = np.clip(unit * 255.0, 0.0, 255.0).astype(np.uint8)
        size = [max(1, round(TILE * voxels.shape[axis] * step[axis] / largest_mm)) for axis in (across, up)]
        tile = Image.new("L", (TILE, TILE))
        scaled = Image.fromarray(grey).resize(
            (size[0], size[1]), Image.Resampling.BOX if plane.shape[0] > size[1] else Image.Resampling.BILINEAR
        )
        tile.paste(scaled, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
        tiles.append(np.asarray(tile))
    return np.concatenate(tiles, axis=1)
