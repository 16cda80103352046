"""A network over a volume larger than its crop: overlapping windows, the middle of each counting most.

Gaussian weights and their width, an eighth of the window, are those of nnU-Net (Isensee 2021, supplement) and MONAI.
What is averaged are probabilities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int]
Predict = Callable[[Tensor], Tensor]
"""From volumes (b, c, i, j, k) to probabilities (b, r, i, j, k)."""

SIGMA = 1 / 8
# Far corners of a window still count a little: a corner of the volume lies in one window only.
LEAST_WEIGHT = 1e-3


def slide(
    predict: Predict, volumes: Float[Tensor, "b c i j k"], *, window: Box | None, overlap: float = 0.5
) -> Float[Tensor, "b r i j k"]:
    """Probabilities of whole volumes from windows of one size; `window` None, or covering all, predicts at once.

    Windows of an axis are spread evenly, each sharing at least `overlap` of its length with the next. An axis shorter
    than the window is filled up with zeros at its end.

    Raises:
        ValueError: the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is the share of a window that the next one sees again, from 0 up to 1: {overlap}")
    i, j, k = volumes.shape[2:]
    if window is None or window == (i, j, k):
        return predict(volumes)
    short = [max(0, edge - size) for edge, size in zip(window, (i, j, k), strict=True)]
    padded = F.pad(volumes, (0, short[2], 0, short[1], 0, short[0]))
    weights = gaussian(window).to(volumes)
    total, seen = None, volumes.new_zeros(padded.shape[2:])
    starts = [spread(size, edge, overlap) for size, edge in zip(padded.shape[2:], window, strict=True)]
    for first_i, first_j, first_k in itertools.product(*starts):
        across = slice(first_i, first_i + window[0])
        along, up = slice(first_j, first_j + window[1]), slice(first_k, first_k + window[2])
        found = predict(padded[:, :, across, along, up])
        if total is None:
            total = found.new_zeros(*found.shape[:2], *padded.shape[2:])
        total[:, :, across, along, up] += found * weights
        seen[across, along, up] += weights
    assert total is not None
    return (total / seen)[..., :i, :j, :k]


def gaussian(window: Box) -> Float[Tensor, "i j k"]:
    """Weight of each voxel of a window, 1 in the middle."""
    weights = torch.ones(())
    for edge in window:
        away = torch.arange(edge) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (away / (SIGMA * edge)) ** 2)
    return (weights / weights.max()).clamp(min=LEAST_WEIGHT)


def spread(size: int, edge: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis, from 0 to where the last one ends with the volume."""
    room = size - edge
    count = 1 + math.ceil(room / max(1, int(edge * (1 - overlap))))
    return [round(at * room / max(1, count - 1)) for at in range(count)]


def with_flips(predict: Predict) -> Predict:
    """Predict all eight mirror images and average what comes back, turned back; the result turns with its input.

    Left and right are alike to a lesion's outline; do not use it where a side is to be told.
    """

    def over_flips(volumes: Tensor) -> Tensor:
        choices = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
        return torch.stack([predict(volumes.flip(axes)).flip(axes) for axes in choices]).mean(dim=0)

    return over_flips
