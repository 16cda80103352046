"""What a volume looks like in small: measures, a histogram, three slices, and a signature that finds its copies.

All of it is computed once, while the volume is in memory, so that a page about a cohort and a search for duplicates
never read a volume again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib

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
BINS = 32
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


def describe(volume: Volume, *, subject: str, study: str, sequence: str) -> SeriesRow:
    """Measure one volume (any finite numbers, at least one voxel along each axis)."""
    voxels, affine = to_ras(volume.voxels, volume.affine)
    reduced, step_mm = _reduce(voxels, affine)
    low, high = (float(value) for value in np.percentile(reduced, SHOWN_PERCENTILES))
    unit = np.clip((reduced - low) / max(high - low, 1e-12), 0.0, 1.0)
    threshold = _otsu(unit)
    inside, outside = unit[unit > threshold], unit[unit <= threshold]
    spread = 1.4826 * float(np.median(np.abs(outside - np.median(outside)))) if outside.size else 0.0
    apart = float(np.median(inside) - np.median(outside)) if inside.size and outside.size else 0.0
    counts = np.histogram(unit, BINS, (0.0, 1.0))[0]
    shape = (int(voxels.shape[0]), int(voxels.shape[1]), int(voxels.shape[2]))
    return SeriesRow(
        subject=subject,
        study=study,
        sequence=sequence,
        shape=shape,
        spacing_mm=spacing_mm(affine),
        digest=digest_voxels(voxels),
        low=low,
        high=high,
        foreground=float((unit > threshold).mean()),
        # A background cut to one value (a stripped skull) has no spread: the histogram's bin stands for it.
        contrast=apart / max(spread, 1.0 / BINS),
        histogram=tuple(round(float(share), 5) for share in counts / counts.sum()),
        signature=pack(_signature(unit, step_mm, threshold)),
    )


def pack(signature: NDArray[np.int8]) -> str:
    """A signature as text."""
    return base64.b64encode(zlib.compress(signature.tobytes(), 6)).decode()


def unpack(text: str) -> NDArray[np.int8]:
    """A signature of `CELLS` cubed cells from its text: -127 to 127, `OUTSIDE` where the volume has no voxels."""
    cells = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.int8)
    return cells.reshape(CELLS, CELLS, CELLS)


def picture(volumes: list[Volume]) -> bytes:
    """PNG of one strip a volume, below one another: axial, coronal and sagittal, `TILE` x `TILE` pixels each.

    Shown as on a viewing station: axial and coronal with the subject's right on the left, sagittal with the front on
    the left; front or head up; true to scale in mm; planes through the middle of what is above Otsu's threshold.
    """
    strips = np.concatenate([_strip(volume) for volume in volumes])
    buffer = io.BytesIO()
    Image.fromarray(strips).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _reduce(
    voxels: NDArray[np.generic], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Means of whole blocks of about 4 mm; voxels that fill no block at the far ends are left out."""
    step = np.asarray(spacing_mm(affine))
    blocks = np.maximum(1, np.round(REDUCED_MM / step)).astype(int)
    blocks = np.minimum(blocks, voxels.shape)
    (a, b, c), (i, j, k) = blocks, np.asarray(voxels.shape) // blocks
    whole = voxels[: i * a, : j * b, : k * c].reshape(i, a, j, b, k, c)
    return whole.mean(axis=(1, 3, 5), dtype=np.float32), step * blocks


def _otsu(unit: NDArray[np.float32]) -> float:
    """Threshold that parts values from 0 to 1 into two classes furthest apart (Otsu 1979)."""
    counts, edges = np.histogram(unit, 64, (0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    weight, moment = np.cumsum(counts), np.cumsum(counts * middles)
    both = weight * (weight[-1] - weight)
    between = (moment[-1] * weight / weight[-1] - moment) ** 2 / np.maximum(both, 1)
    return float(edges[1 + int(np.argmax(np.where(both > 0, between, -1.0)))])


def _signature(unit: NDArray[np.float32], step_mm: NDArray[np.float64], threshold: float) -> NDArray[np.int8]:
    """The volume on a cube of `CELLS` cells of `CELL_MM` around the middle of its foreground, from -127 to 127.

    A gain, an offset, another spacing, background cut off and a shift leave it nearly as it is.
    """
    ratio = CELL_MM / step_mm
    smooth = ndimage.gaussian_filter(unit, 0.425 * np.sqrt(np.maximum(ratio**2 - 1.0, 0.0)), truncate=2.5)
    corner = _middle(unit > threshold) - (CELLS - 1) / 2 * ratio
    cells = ndimage.affine_transform(smooth, ratio, corner, output_shape=(CELLS,) * 3, order=1, cval=np.nan)
    filled = np.round(np.nan_to_num(cells) * 254.0 - 127.0)
    return np.where(np.isnan(cells), OUTSIDE, filled).astype(np.int8)


def _middle(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    if not inside.any():
        return (np.asarray(inside.shape) - 1) / 2
    return np.asarray(ndimage.center_of_mass(inside))


def _strip(volume: Volume) -> NDArray[np.uint8]:
    voxels, affine = to_ras(volume.voxels, volume.affine)
    step = np.asarray(spacing_mm(affine))
    thin = voxels[tuple(slice(None, None, max(1, round(REDUCED_MM / size))) for size in step)].astype(np.float32)
    low, high = np.percentile(thin, SHOWN_PERCENTILES)
    unit = np.clip((thin - low) / max(high - low, 1e-12), 0.0, 1.0)
    share = _middle(unit > _otsu(unit)) / np.maximum(np.asarray(thin.shape) - 1, 1)
    at = np.round(share * (np.asarray(voxels.shape) - 1)).astype(int)
    largest_mm = float((np.asarray(voxels.shape) * step).max())
    tiles = []
    for across, up, along in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        plane = np.take(voxels, at[along], axis=along).astype(np.float32)[::-1, ::-1].T
        grey = np.clip((plane - low) / max(high - low, 1e-12) * 255.0, 0.0, 255.0).astype(np.uint8)
        size = [max(1, round(TILE * voxels.shape[axis] * step[axis] / largest_mm)) for axis in (across, up)]
        tile = Image.new("L", (TILE, TILE))
        scaled = Image.fromarray(grey).resize(
            (size[0], size[1]), Image.Resampling.BOX if plane.shape[0] > size[1] else Image.Resampling.BILINEAR
        )
        tile.paste(scaled, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
        tiles.append(np.asarray(tile))
    return np.concatenate(tiles, axis=1)
