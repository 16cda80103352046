"""Losses of labels: several findings of which any may be there, or classes of which exactly one is.

Labels that are not known have no say. Weights and exponents of the focal loss are those of Lin 2017 (sec. 3.2), which
MedMAP's released trainer uses as they are (gamma 2, alpha 0.25).
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tomoglot.types import Scalar

GAMMA, ALPHA = 2.0, 0.25


def known_cross_entropy(
    logits: Float[Tensor, "b f"], labels: Float[Tensor, "b f"], labelled: Bool[Tensor, "b f"]
) -> Scalar:
    """Binary cross-entropy, the mean over known labels; a batch without any gives a zero that has a gradient."""
    return _mean_known(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), labelled)


def known_focal(
    logits: Float[Tensor, "b f"],
    labels: Float[Tensor, "b f"],
    labelled: Bool[Tensor, "b f"],
    *,
    gamma: float = GAMMA,
    alpha: float = ALPHA,
) -> Scalar:
    """Binary focal loss, the mean over known labels: cross-entropy times (1 - p of the truth)^gamma.

    `alpha` weighs what is present, 1 - `alpha` what is absent. Gamma 0 and alpha 0.5 give half the cross-entropy.
    """
    terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    # The probability of the truth is exp(-cross-entropy).
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    return _mean_known(weight * (1 - (-terms).exp()) ** gamma * terms, labelled)


def class_focal(logits: Float[Tensor, "b k"], classes: Int[Tensor, " b"], *, gamma: float = GAMMA) -> Scalar:
    """Focal loss of classes that exclude each other; gamma 0 is cross-entropy. No alpha: it would weigh all alike."""
    terms = F.cross_entropy(logits, classes, reduction="none")
    return ((1 - (-terms).exp()) ** gamma * terms).mean()


def _mean_known(terms: Tensor, labelled: Tensor) -> Tensor:
    return (terms * labelled).sum() / labelled.sum().clamp(min=1)
