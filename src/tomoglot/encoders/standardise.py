"""Features less what all of them share, over how much they vary, by running statistics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RunningStandardiser(nn.Module):
    """Subtract a running mean and divide by a running deviation; gradients pass the statistics by.

    All reports resemble one another, and so do all features of an untrained encoder: their cosines are near 1, and a
    contrast at 0.07 sees no difference to learn from. Batch norm would do, but not for the one volume of a rare
    sequence, and its batch statistics would let studies of a batch see one another.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, width: int, *, memory: int = 50) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, features: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        """Standardise; while training, first move the statistics towards these rows."""
        # Under autocast a convolution gives half precision, and statistics are kept in full.
        features = features.to(self.mean.dtype)
        if self.training and len(features) > 1:
            with torch.no_grad():
                self.updates += 1
                share = max(1.0 / self.memory, 1.0 / self.updates.item())
                self.mean.lerp_(features.mean(dim=0), share)
                self.variance.lerp_((features - self.mean).square().mean(dim=0), share)
        return (features - self.mean) / (self.variance + 1e-6).sqrt()
