"""A decoder with skips: every map of the pyramid, and the input itself, back to one logit a region and voxel.

After BrainMVP's fine-tuning network (code: Downstream, `UniUnet`): the input through one convolution is the finest
skip, and coarser logits are given out as well, for deep supervision. Differs from it: maps are brought to the size of
the next finer one by trilinear interpolation and not by transposed convolution, so that an edge may have any length
(encoders round an odd edge up or down), and a stage has one convolution after the skip where the code has a residual
block, because this decoder must run on a CPU. Where a map is more than fourfold coarser than the next finer one (a
transformer has one map, at the stride of its patch), the decoder doubles its size in between, without a skip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.vision import VisionFeatures

# Between two maps; beyond it the decoder doubles on its own.
FURTHEST = 4
# Channels at full size: a convolution there costs eight times what it costs at the encoder's finest map.
LEAST_WIDTH = 8


class SkipDecoder(nn.Module):
    """From pyramid and input to logits, full size first.

    Attributes:
        deep_supervision: how many coarser logits come after the first, each at the stride of the next stage.
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
                stages below the coarsest.
        """
        super().__init__()
        if len(widths) != len(strides) or list(strides) != sorted(set(strides)):
            raise ValueError(f"widths {tuple(widths)} and strides {tuple(strides)}: one of each a map, strides rising")
        levels = _levels(widths, strides)
        if not 0 <= deep_supervision < len(levels):
            raise ValueError(
                f"deep_supervision {deep_supervision}: a decoder of {len(levels)} stages has logits at 0 to "
                f"{len(levels) - 1} coarser sizes"
            )
        self.deep_supervision = deep_supervision
        full = max(LEAST_WIDTH, levels[0].width // 2)
        self.input_skip = nn.Sequential(nn.Conv3d(in_channels, full, 3, padding=1, bias=False), _norm(full), nn.SiLU())
        # What a stage gives has the size of the next finer level, the input at last.
        finer = (_Level(stride=1, width=full, mapped=True), *levels[:-1])
        self.stages = nn.ModuleList(
            _Stage(coarse.width, fine.width, stride=fine.stride, skip=fine.mapped)
            for coarse, fine in reversed(list(zip(levels, finer, strict=True)))
        )
        self.heads = nn.ModuleList(nn.Conv3d(fine.width, out_channels, 1) for fine in finer[: deep_supervision + 1])

    def forward(
        self, features: VisionFeatures, volumes: Float[Tensor, "b c i j k"]
    ) -> tuple[Float[Tensor, "b _r _i _j _k"], ...]:
        """Logits: the first of the size of `volumes`, the others of the sizes of the decoder's finest stages."""
        skips = [self.input_skip(volumes), *features.pyramid[:-1]]
        current = features.pyramid[-1]
        outputs: list[Tensor] = []
        for stage in self.stages:
            current = stage(current, skips.pop() if stage.skip else None, volumes.shape[2:])
            outputs.append(current)
        # Coarse to fine so far; the first head is for the finest.
        return tuple(head(output) for head, output in zip(self.heads, reversed(outputs), strict=False))


@dataclass(frozen=True, slots=True)
class _Level:
    """What a stage starts from: a map of the pyramid, or a size in between."""

    stride: int
    width: int
    mapped: bool


def _levels(widths: Sequence[int], strides: Sequence[int]) -> list[_Level]:
    """Of every stage, fine to coarse: the maps, and where one is more than fourfold coarser, half of it, and so on."""
    levels: list[_Level] = []
    for finer, stride, width in zip((1, *strides), strides, widths, strict=False):
        level = _Level(stride=stride, width=width, mapped=True)
        between = [level]
        if stride > FURTHEST * finer:
            while between[0].stride // 2 > finer:
                before = between[0]
                half = _Level(stride=before.stride // 2, width=max(LEAST_WIDTH, before.width // 2), mapped=False)
                between.insert(0, half)
        levels += between
    return levels


class _Stage(nn.Module):
    """Bring a coarse map to the width and size of the skip, and mix the two; without a skip, to those of its stride."""

    def __init__(self, coarse: int, width: int, *, stride: int, skip: bool) -> None:
        super().__init__()
        self.stride, self.skip = stride, skip
        # Channels are reduced before the map grows: the other way round costs eight times as much.
        self.reduce = nn.Conv3d(coarse, width, 1)
        read = 2 * width if skip else width
        self.mix = nn.Sequential(nn.Conv3d(read, width, 3, padding=1, bias=False), _norm(width), nn.SiLU())

    def forward(self, coarse: Tensor, skip: Tensor | None, whole: Sequence[int]) -> Tensor:
        size = [math.ceil(edge / self.stride) for edge in whole] if skip is None else skip.shape[2:]
        grown = F.interpolate(self.reduce(coarse), size=size, mode="trilinear", align_corners=False)
        return self.mix(grown if skip is None else torch.cat([grown, skip], dim=1))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, width), width)
