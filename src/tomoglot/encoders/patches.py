"""Volumes as patches and back, exactly: what a masked autoencoder hides, shows, puts back and is asked for.

A patch is a box of voxels; one of (p, p, 1) is a square of an image, so that everything here works in 2D as well. The p
of a shape counts patches in voxel order (the last axis runs fastest), which is the order of
`batches.mask.block_mask(...).flatten(1)` and of a vision transformer's tokens; v counts the voxels of one patch, the
channel slowest.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tomoglot.types import Volumes

Voxels = tuple[int, int, int]


def patch_grid(shape: Voxels, patch: Voxels) -> Voxels:
    """How many patches lie along each axis.

    Raises:
        ValueError: patches do not tile the volume exactly.
    """
    if any(size % edge for size, edge in zip(shape, patch, strict=True)):
        raise ValueError(f"patches of {tuple(patch)} voxels do not tile a volume of {tuple(shape)} voxels")
    i, j, k = (size // edge for size, edge in zip(shape, patch, strict=True))
    return i, j, k


def patchify(volumes: Volumes, patch: Voxels) -> Float[Tensor, "b p v"]:
    """Cut volumes into patches.

    Raises:
        ValueError: patches do not tile the volumes exactly.
    """
    studies, channels, i, j, k = volumes.shape
    grid = patch_grid((i, j, k), patch)
    split = volumes.reshape(studies, channels, grid[0], patch[0], grid[1], patch[1], grid[2], patch[2])
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(studies, grid[0] * grid[1] * grid[2], -1)


def fill_up(volumes: Volumes, patch: Voxels) -> Float[Tensor, "b c _i _j _k"]:
    """Zeros at the far end of each axis, up to whole patches."""
    short = [-size % edge for size, edge in zip(volumes.shape[2:], patch, strict=True)]
    # F.pad counts from the last axis.
    return F.pad(volumes, (0, short[2], 0, short[1], 0, short[0])) if any(short) else volumes


def unpatchify(patches: Float[Tensor, "b p v"], patch: Voxels, grid: Voxels) -> Volumes:
    """Put patches back: the inverse of `patchify` for a volume of `grid` patches.

    Raises:
        ValueError: their number is not that of the grid, or a patch does not hold whole channels.
    """
    studies, number, size = patches.shape
    voxels = patch[0] * patch[1] * patch[2]
    if number != grid[0] * grid[1] * grid[2] or size % voxels:
        raise ValueError(f"{number} patches of {size} values are no volume of {grid} patches of {patch} voxels")
    split = patches.reshape(studies, *grid, size // voxels, *patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    i, j, k = (edge * count for edge, count in zip(patch, grid, strict=True))
    return split.reshape(studies, size // voxels, i, j, k)


def real_voxels(shape: Voxels, patch: Voxels, grid: Voxels) -> Bool[Tensor, "1 p v"]:
    """Which values of each patch lie in a volume of this shape, and not in what fills it up to whole patches."""
    whole = torch.zeros(1, 1, *(edge * count for edge, count in zip(patch, grid, strict=True)))
    whole[:, :, : shape[0], : shape[1], : shape[2]] = 1
    return patchify(whole, patch).bool()


def patch_targets(
    volumes: Volumes, patch: Voxels, *, real: Bool[Tensor, "1 p v"] | None = None, eps: float = 1e-6
) -> Float[Tensor, "b p v"]:
    """Patches, each less its mean and over its own deviation (He 2022, sec. 4.1: normalised pixels as targets).

    The variance is divided by v - 1 and `eps` is added to it, as the public code does: background stays at zero.
    Only `real` values count, and the others are zero; a patch that holds one of them alone is zero.

    Raises:
        ValueError: patches do not tile the volumes exactly, or a patch is a single value.
    """
    patches = patchify(volumes, patch)
    if patches.shape[-1] < 2:
        raise ValueError(f"a patch of {tuple(patch)} voxels is one value, which has no deviation to divide by")
    if real is None or bool(real.all()):
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + eps).sqrt()
    count = real.sum(dim=-1, keepdim=True)
    mean = (patches * real).sum(dim=-1, keepdim=True) / count.clamp(min=1)
    centred = (patches - mean) * real
    variance = centred.square().sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance + eps).sqrt()


def imaged_patches(volumes: Volumes, patch: Voxels) -> Bool[Tensor, "b p"]:
    """Patches that hold more than one value; all of them where a volume has none such.

    Raises:
        ValueError: patches do not tile the volumes exactly.
    """
    patches = patchify(volumes, patch)
    varied = patches.amax(dim=2) > patches.amin(dim=2)
    return varied | ~varied.any(dim=1, keepdim=True)


def count_visible(visible: Bool[Tensor, "b p"]) -> int:
    """How many patches every study shows.

    Raises:
        ValueError: studies show different numbers, or none: they would not fit in one tensor.
    """
    counts = visible.sum(dim=1).unique().tolist()
    if len(counts) != 1 or counts[0] == 0:
        raise ValueError(f"every study must show the same number of patches, at least one; they show {counts}")
    return int(counts[0])


def take_visible(values: Float[Tensor, "b p v"], visible: Bool[Tensor, "b p"]) -> Float[Tensor, "b _n v"]:
    """The values of the visible patches alone, in order.

    Raises:
        ValueError: studies show different numbers, or none.
    """
    return values[visible].reshape(len(values), count_visible(visible), values.shape[-1])


def put_visible(
    values: Float[Tensor, "b _n e"], visible: Bool[Tensor, "b p"], fill: Float[Tensor, " e"]
) -> Float[Tensor, "b p e"]:
    """The inverse of `take_visible`: values where a patch was visible, and `fill` (a learned token) elsewhere."""
    whole = fill.to(values.dtype).expand(*visible.shape, values.shape[-1])
    return whole.masked_scatter(visible[..., None], values)
