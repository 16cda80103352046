"""Alignment beyond one vector against another: readers with what they read, sentences between studies (MG-3D)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tomoglot.objectives.contrastive import rank_loss
from tomoglot.types import Scalar


def sentence_likeness(
    features: Float[Tensor, "n s d"],
    words: Float[Tensor, "n s e"],
    present: Bool[Tensor, "n s"],
    *,
    alike: float = 0.9,
    unlike: float = 0.6,
) -> Scalar:
    """Likeness of sentences between studies steers that of their visual features (MG-3D's SSM; code: objectives.py).

    For sentences of two different studies with cosine G of their words: from `alike` on the cosine of their features
    should be G, up to `unlike` it should be 0, and between the two it is left alone. The absolute difference, a mean
    over all pairs of sentences of two studies (those left alone count as 0), then over pairs of studies. 0 where fewer
    than two studies have sentences.

    Raises:
        ValueError: `unlike` is above `alike`.
    """
    if unlike > alike:
        raise ValueError(f"sentences cannot be unlike up to {unlike} and alike from {alike}: the gates overlap")
    kept, rows = features[present].float(), words[present].float()
    study = present.nonzero()[:, 0]
    with torch.autocast(features.device.type, enabled=False):
        # A sentence that read nothing of its own has a feature near zero, where a cosine has no bounded gradient.
        unit = F.normalize(kept, dim=1, eps=1e-4)
        found = unit @ unit.T
        wanted = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T
    count = present.sum(dim=1).clamp(min=1)
    share = 1.0 / (count[study][:, None] * count[study][None, :])
    counted = (study[:, None] != study[None, :]) & ((wanted >= alike) | (wanted <= unlike))
    target = torch.where(wanted >= alike, wanted, 0.0)
    num_studies = int(present.any(dim=1).sum())
    num_pairs = max(num_studies * (num_studies - 1), 1)
    return torch.where(counted, (found - target).abs() * share, 0.0).sum() / num_pairs


def fused_contrast(
    fused: Float[Tensor, "m n d"],
    plain: Float[Tensor, "n d"],
    belongs: Bool[Tensor, "n m"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Scalar:
    """Which of m others did each of n readers read, so that it stayed nearest to what it was before?

    `fused[i, j]` is reader j after it read other i, `plain[j]` the reader before. The candidates of a reader are the
    fused forms of itself: the reader is the same in all of them, so only what was read can tell them apart.
    Cross-entropy of those that `belongs` to the reader (an equal share on each), a mean over readers. `info_nce` cannot
    say this: there a candidate does not depend on who asks.

    Raises:
        ValueError: a reader to whom nothing belongs.
    """
    with torch.autocast(fused.device.type, enabled=False):
        cosines = torch.einsum("mnd,nd->nm", F.normalize(fused.float(), dim=2), F.normalize(plain.float(), dim=1))
    return rank_loss(cosines / temperature, belongs, "reader")
