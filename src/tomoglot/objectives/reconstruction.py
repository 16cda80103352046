"""How far a reconstruction is from the truth: over hidden voxels or the whole crop, as a mean square or a norm.

Masked autoencoding asks only for what was hidden (He 2022, sec. 3); BrainMVP asks for the whole crop (Rui 2025: the
paper writes a norm, the released code a mean square). Both here, as functions that know no model.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tomoglot.types import Scalar

# Under the root, so that a perfect reconstruction has a gradient of zero and not one that is undefined.
ROOT_GUARD = 1e-12


def voxel_weights(
    true: Float[Tensor, "b c i j k"],
    hidden: Bool[Tensor, "b 1 i j k"] | None,
    *,
    background_weight: float = 1.0,
) -> Float[Tensor, "b c i j k"]:
    """How much each voxel counts: 1, or 0 where it was visible (`hidden` given), and less in the background.

    Background is where the true value is exactly zero, which the plan's zscore and percentile keep for "nothing was
    imaged". In a head crop it is half of all voxels and the easiest half (ours; papers count it whole).

    Raises:
        ValueError: a negative weight, or nothing is left to count.
    """
    if background_weight < 0:
        raise ValueError(f"background_weight must not be negative, got {background_weight}")
    weights = torch.ones_like(true) if hidden is None else hidden.expand_as(true).to(true.dtype)
    if background_weight != 1.0:
        weights = torch.where(true == 0, background_weight * weights, weights)
    if not bool((weights > 0).any()):
        raise ValueError("no voxel counts: nothing is hidden, or all of it is background at weight 0")
    return weights


def reconstruction_loss(
    predicted: Float[Tensor, "b c i j k"],
    true: Float[Tensor, "b c i j k"],
    *,
    weights: Float[Tensor, "b c i j k"] | None = None,
    norm: Literal["mse", "l2"] = "mse",
) -> Scalar:
    """Difference of a batch of volumes from the truth.

    "mse": weighted mean of the squared differences over all voxels of the batch (code). "l2": for each volume the root
    of its weighted sum of squares, then the mean over volumes (the paper's ``|| . ||_2``); on a 96^3 crop that is some
    940 times the root of the mean square, so it weighs far more against a contrast term.
    """
    # Half precision would lose the small differences of a sum over a million voxels.
    squares = (predicted.float() - true.float()).square()
    if weights is not None:
        squares = squares * weights
    if norm == "l2":
        return (squares.flatten(1).sum(1) + ROOT_GUARD).sqrt().mean()
    return squares.mean() if weights is None else squares.sum() / weights.sum()
