"""Overlap of predicted with true regions: soft Dice and cross-entropy, a study without a mask left out.

Regions may lie within one another (the whole tumour holds its core), so each is a yes or no of its own: sigmoid, not
softmax (code: BrainMVP, Downstream). r is a region.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, "b r i j k"]
Known = Bool[Tensor, " b"]


def region_targets(
    masks: Int[Tensor, "b i j k"], regions: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "b r i j k"], Known]:
    """One map of zeros and ones a region, and which studies have a mask at all (-1 everywhere: none).

    Raises:
        ValueError: there is no region, or one without a label.
    """
    if not regions or not all(regions):
        raise ValueError(f"every region needs a mask label, got {[tuple(labels) for labels in regions]}")
    maps = [torch.isin(masks, masks.new_tensor(list(labels))) for labels in regions]
    return torch.stack(maps, dim=1).float(), (masks >= 0).flatten(1).all(dim=1)


def soft_dice(
    logits: Logits,
    targets: Logits,
    known: Known,
    *,
    squared: bool = True,
    smooth: float = 1.0,
    over_batch: bool = False,
) -> Float[Tensor, ""]:
    """One minus the Dice of sigmoid(logits), a mean over regions of known studies; 0 where no study is known.

    Args:
        logits: before the sigmoid.
        targets: from 0 to 1; a coarse map may hold the share of its voxel that the region fills.
        known: studies that count.
        squared: sum squares below the line (Milletari 2016, V-Net, sec. 3; code) instead of the values.
        smooth: added above and below (code: 1), so that an empty region rightly predicted empty costs nothing.
        over_batch: sum over the batch before dividing, so that a study without the region still tells false alarms
            apart from lesions found.
    """
    if not known.any():
        return logits.sum() * 0.0
    predicted, true = logits[known].float().sigmoid().flatten(2), targets[known].flatten(2)
    below = predicted.square() + true.square() if squared else predicted + true
    dims = (0, 2) if over_batch else (2,)
    dice = (2 * (predicted * true).sum(dims) + smooth) / (below.sum(dims) + smooth)
    return (1 - dice).mean()


def region_cross_entropy(logits: Logits, targets: Logits, known: Known) -> Float[Tensor, ""]:
    """Binary cross-entropy, a mean over voxels and regions of known studies; 0 where no study is known."""
    if not known.any():
        return logits.sum() * 0.0
    return F.binary_cross_entropy_with_logits(logits[known].float(), targets[known])


def overlap_loss(
    logits: Sequence[Float[Tensor, "b _r _i _j _k"]],
    targets: Logits,
    known: Known,
    *,
    dice_weight: float = 0.7,
    cross_entropy_weight: float = 0.3,
    over_batch: bool = False,
) -> Float[Tensor, ""]:
    """Weighted Dice and cross-entropy (code: 0.7 and 0.3), summed over the outputs of a decoder (code: all weigh 1).

    Targets of a coarse output are means over its voxels (inferred: the code does not say; nearest neighbours would
    drop lesions smaller than a coarse voxel).
    """
    total = logits[0].sum() * 0.0
    for output in logits:
        i, j, k = output.shape[2:]
        true = targets if output.shape == targets.shape else F.adaptive_avg_pool3d(targets, (i, j, k))
        dice = soft_dice(output, true, known, over_batch=over_batch)
        total = total + dice_weight * dice + cross_entropy_weight * region_cross_entropy(output, true, known)
    return total


def copies_apart(one: Float[Tensor, "b *dims"], other: Float[Tensor, "b *dims"]) -> Float[Tensor, ""]:
    """Mean squared difference between what two copies of the same studies gave (code: MSE; stated: an L2 norm).

    The square, because the norm has no gradient where two copies agree.
    """
    return F.mse_loss(one.float(), other.float())
