"""Decoders without skips: from the coarsest map alone, or from the visible patches alone, back to voxels.

Masked pre-training throws it away afterwards. It sees nothing but the bottleneck, so whatever the reconstruction needs
has to be carried by the encoder (Rui 2025, sec. 3: no skip connections while pre-training).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.config import Settings
from tomoglot.encoders.fusion import Block
from tomoglot.encoders.patches import Voxels, put_visible
from tomoglot.encoders.vision import VisionFeatures
from tomoglot.encoders.vit import waves


class BottleneckDecoder(nn.Module):
    """Transposed convolutions from the coarsest map to full size, one a stride of the encoder.

    The released decoder is four such convolutions and a 1x1x1 convolution to one channel, with nothing between them:
    `linear=True`. The last two of those are one linear map, and here they are one layer, so that no map with more than
    `out_channels` channels ever exists at full size (code: 64 channels).
    """

    def __init__(
        self, widths: tuple[int, ...], strides: tuple[int, ...], *, out_channels: int = 1, linear: bool = False
    ) -> None:
        """Build for an encoder's `widths` and `strides`, fine to coarse.

        Raises:
            ValueError: the two differ in length, or a stride is not a multiple of the next finer one.
        """
        super().__init__()
        if len(widths) != len(strides) or not widths:
            raise ValueError(f"widths {widths} and strides {strides}: give one of each a stage")
        edges = (1, *strides)
        # A UNet's finest map may be of full size: then the last layer is a 1x1x1 convolution.
        if any(coarse % fine or coarse <= fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"strides {strides}: each must be a multiple of the one before")
        outputs = (out_channels, *widths[:-1])
        stages: list[nn.Module] = []
        for stage in reversed(range(len(widths))):
            ratio = edges[stage + 1] // edges[stage]
            layers: list[nn.Module] = [nn.ConvTranspose3d(widths[stage], outputs[stage], ratio, stride=ratio)]
            if stage > 0 and not linear:
                layers += [nn.GroupNorm(math.gcd(8, outputs[stage]), outputs[stage]), nn.SiLU()]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, features: VisionFeatures, shape: tuple[int, int, int]) -> Float[Tensor, "b c i j k"]:
        """Voxels of a volume of `shape`; of the finer maps only their sizes are used.

        Raises:
            ValueError: the pyramid has another number of maps than this decoder was built for.
        """
        if len(features.pyramid) != len(self.stages):
            raise ValueError(
                f"this decoder was built for {len(self.stages)} maps, the pyramid has {len(features.pyramid)}"
            )
        sizes = [shape, *(tuple(level.shape[2:]) for level in features.pyramid[:-1])]
        grown = features.pyramid[-1]
        for stage, size in zip(self.stages, reversed(sizes), strict=True):
            grown = _fit(stage(grown), size)
        return grown


class PatchDecoder(nn.Module):
    """From the tokens of visible patches to the voxels of all: a light transformer (He 2022, sec. 3), or convolutions.

    Which patches are neighbours a transformer has to learn from positions first. In some hundred steps it does not:
    asked for hidden patches of brain MRI, it still answered nearly zero after 1,000 of them, where a linear map from
    the voxels around a patch is right about half of its variance (results/mpma.md). Convolutions over the grid know it.
    """

    class Config(Settings):
        """Sizes, and what a layer is.

        Attributes:
            mixing: "attention" among all patches, or "neighbours": convolutions over each patch and those around it.
            heads: of attention alone; they divide the width.
        """

        mixing: Literal["attention", "neighbours"] = "attention"
        width: int = Field(512, ge=6)
        layers: int = Field(4, ge=1)
        heads: int = Field(8, ge=1)

        @model_validator(mode="after")
        def _heads_fit(self) -> Self:
            if self.mixing == "attention" and self.width % self.heads:
                raise ValueError(f"heads {self.heads} must divide width {self.width}")
            return self

    def __init__(self, config: Config, *, image_width: int, voxels: int) -> None:
        """Build for tokens of `image_width` and patches of so many `voxels`."""
        super().__init__()
        self.embed = nn.Linear(image_width, config.width)
        self.unseen = nn.Parameter(0.02 * torch.randn(config.width))
        self.blocks = nn.ModuleList(
            Neighbours(config.width) if config.mixing == "neighbours" else Block(config.width, heads=config.heads)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, voxels)

    def forward(
        self, seen: Float[Tensor, "b _n e"], visible: Bool[Tensor, "b p"], grid: Voxels
    ) -> Float[Tensor, "b p v"]:
        """Voxels of every patch of a grid; a patch that was not seen starts as a learned token with its place.

        Raises:
            ValueError: a grid of fewer than two patches.
        """
        tokens = put_visible(self.embed(seen), visible, self.unseen)
        tokens = tokens + waves(grid, tokens.shape[2]).to(tokens)
        for block in self.blocks:
            tokens = block(tokens, grid) if isinstance(block, Neighbours) else block(tokens)
        return self.out(self.norm(tokens))


class Neighbours(nn.Module):
    """Tokens of a grid after each has read itself and the up to 26 around it, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.around = nn.Conv3d(width, width, 3)
        self.mix = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b p e"], grid: Voxels) -> Float[Tensor, "b p e"]:
        """The same number of tokens, those of a grid in voxel order; beyond its edge are zeros."""
        weight = self.around.weight
        for axis, edge in enumerate(grid, start=2):
            # Of an axis with one patch, as an image has, the kernel's middle alone would ever meet a token.
            weight = weight.narrow(axis, 1, 1) if edge == 1 else weight
        cells = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        pads = [int(edge > 1) for edge in grid]
        heard = F.conv3d(cells, weight, self.around.bias, padding=pads).flatten(2).transpose(1, 2)
        return tokens + self.mix(F.gelu(heard))


def _fit(grown: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cut what stands over at the far end, or repeat the last voxel where a remainder was lost on the way down."""
    short = [wanted - got for wanted, got in zip(size, grown.shape[2:], strict=True)]
    if max(short) > 0:
        # F.pad counts from the last axis.
        pads = [pad for missing in reversed(short) for pad in (0, max(0, missing))]
        grown = F.pad(grown, pads, mode="replicate")
    return grown[..., : size[0], : size[1], : size[2]]
