"""How well the words of a report are rebuilt: its hidden tokens, and its sentences as wholes (MG-3D)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from tomoglot.types import Scalar


def hidden_token_loss(
    outputs: Float[Tensor, "n e"],
    words: Int[Tensor, " n"],
    *,
    table: Float[Tensor, "v e"],
    bias: Float[Tensor, " v"],
) -> Scalar:
    """Cross-entropy of the hidden word pieces, given the outputs at those places alone (Devlin 2019, sec. 3.1).

    A row of logits is as long as the vocabulary, so rows of visible tokens are left out before the product and not
    after: of a report of 250 tokens and a vocabulary of 30,000 they would be 85 % of 30 MB. Where nothing is hidden,
    the loss is 0.
    """
    if len(outputs) == 0:
        return outputs.sum() * 0.0
    return F.cross_entropy(F.linear(outputs, table, bias).float(), words)


def sentence_reconstruction(
    rebuilt: Float[Tensor, "b s e"], true: Float[Tensor, "b s e"], present: Bool[Tensor, "b s"]
) -> Scalar:
    """One minus the cosine, summed over a report's sentences; the mean over reports that have some (code: sen_mlm)."""
    away = 1 - F.cosine_similarity(rebuilt.float(), true.float(), dim=2)
    reported = present.any(dim=1).sum().clamp(min=1)
    return torch.where(present, away, 0.0).sum() / reported
