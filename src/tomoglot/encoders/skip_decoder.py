"""A decoder with skips: every map of the pyramid, and the input itself, back to one logit a region and voxel.

After BrainMVP's fine-tuning network (code: Downstream, `UniUnet`): the input through one convolution is the finest
skip, and coarser logits are given out as well, for deep supervision. Differs from it: maps are brought to the size of
the next finer one by trilinear interpolation and not by transposed convolution, so that an edge may have any length
(encoders round an odd edge up or down), and a stage has one convolution after the skip where the code has a residual
block, because this decoder must run on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.vision import VisionFeatures

# Channels at full size: a convolution there costs eight times what it costs at the encoder's finest map.
LEAST_WIDTH = 8


class SkipDecoder(nn.Module):
    """From pyramid and input to logits, full size first.

    Attributes:
        deep_supervision: how many coarser logits come after the first: at `strides[0]`, `strides[1]` and so on.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        strides: Sequence[int],
        *,
        out_channels: int,
        deep_supervision: int = 2,
    ) -> None:
        """Make the stages for an encoder's `widths` and `strides`, both fine to coarse.

        Raises:
            ValueError: the two differ in length or do not run from fine to coarse, or there are more deep outputs than
                maps below the coarsest.
        """
        super().__init__()
        if len(widths) != len(strides) or list(strides) != sorted(set(strides)):
            raise ValueError(f"widths {tuple(widths)} and strides {tuple(strides)}: one of each a map, strides rising")
        if not 0 <= deep_supervision < len(widths):
            raise ValueError(
                f"deep_supervision {deep_supervision}: a pyramid of {len(widths)} maps has logits at 0 to "
                f"{len(widths) - 1} coarser sizes"
            )
        self.deep_supervision = deep_supervision
        full = max(LEAST_WIDTH, widths[0] // 2)
        self.input_skip = nn.Sequential(nn.Conv3d(in_channels, full, 3, padding=1, bias=False), _norm(full), nn.SiLU())
        outputs = (full, *widths[:-1])
        self.stages = nn.ModuleList(
            _Stage(coarse, outputs[level]) for level, coarse in reversed(list(enumerate(widths)))
        )
        self.heads = nn.ModuleList(nn.Conv3d(outputs[level], out_channels, 1) for level in range(deep_supervision + 1))

    def forward(
        self, features: VisionFeatures, volumes: Float[Tensor, "b c i j k"]
    ) -> tuple[Float[Tensor, "b _r _i _j _k"], ...]:
        """Logits: the first of the size of `volumes`, the others of the sizes of the pyramid's finest maps."""
        skips = (self.input_skip(volumes), *features.pyramid[:-1])
        current = features.pyramid[-1]
        outputs: list[Tensor] = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            current = stage(current, skip)
            outputs.append(current)
        # Coarse to fine so far; the first head is for the finest.
        return tuple(head(output) for head, output in zip(self.heads, reversed(outputs), strict=False))


class _Stage(nn.Module):
    """Bring a coarse map to the width and size of the skip, and mix the two."""

    def __init__(self, coarse: int, width: int) -> None:
        super().__init__()
        # Channels are reduced before the map grows: the other way round costs eight times as much.
        self.reduce = nn.Conv3d(coarse, width, 1)
        self.mix = nn.Sequential(nn.Conv3d(2 * width, width, 3, padding=1, bias=False), _norm(width), nn.SiLU())

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        grown = F.interpolate(self.reduce(coarse), size=skip.shape[2:], mode="trilinear", align_corners=False)
        return self.mix(torch.cat([grown, skip], dim=1))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, width), width)
