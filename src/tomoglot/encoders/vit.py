"""A vision transformer over patches of a volume (Dosovitskiy 2021), which can be shown visible patches alone (He 2022).

| value                                     | mark     | source or reason                                     |
|---|---|---|
| ViT-B: width 768, 12 blocks, 12 heads     | stated   | Dosovitskiy 2021, table 1: `base()`                  |
| ViT-S: width 384, 12 blocks, 6 heads      | stated   | Touvron 2021 (DeiT), table 1: `small()`              |
| patch of 16^3                             | code     | MG-3D's volume mask and its ViT; in 2D ViT-B/16      |
| pre-norm blocks, a norm at the end        | stated   | Dosovitskiy 2021, sec. 3.1                           |
| fixed sine and cosine positions           | code     | MAE; one third of the width for each axis is ours    |
| no class token                            | inferred | MAE's ablation: the mean of the tokens does as well  |
| `positions="learned"`, interpolated       | stated   | Dosovitskiy 2021, sec. 3.2; trilinear here           |
| `pooling="mean_max"`                      | inferred | ours: a small lesion moves a maximum and not a mean  |
| `stem`: convolutions within a patch       | inferred | ours, after Xiao 2021, who lets them cross patches   |
| `standardise`: of embedded patches        | inferred | ours; Xiao 2021 has a batch norm in every convolution|

Positions have a mean square of 0.5. As drawn, what a stem makes of a patch has 0.002 on chest CT, of which 0.0001
differ from study to study: the blocks hardly see a volume but for where its patches are (results/mpma.md). So
`standardise` gives embedded patches a mean square of 1. Without a stem, and with input of unit variance as MAE's, it
is near 1 as it is.

A patch of (p, p, 1) reads images: volumes with one voxel along k. With visible patches only, the cost falls with the
share that is hidden: patches are left out before the first layer. The finer maps of a stem are in the pyramid too, so
that a decoder finds edges in them: a patch of 8 voxels alone says hardly where in it something lies.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.patches import Voxels, fill_up, patch_grid, patchify, take_visible
from tomoglot.encoders.standardise import RunningStandardiser
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.types import Volumes

LONGEST_WAVE = 10_000.0
Boxes = Float[Tensor, "b p _c _i _j _k"]


class ViT(VisionEncoder):
    """Patches to tokens through attention; the pyramid is the maps of the stem, and then the tokens as a map."""

    class Config(VisionEncoder.Config):
        """Sizes of the transformer.

        Attributes:
            patch: voxels of a patch along i, j, k; (p, p, 1) for images.
            stem: channels of convolutions, each of which halves a patch before what is left of it is projected. They
                see one patch at a time: a hidden one is still never read. None: patches are projected as they are.
            width: channels of a token.
            depth: blocks.
            heads: of attention; they divide the width.
            mlp_ratio: width of a block's hidden layer over its own.
            positions: of patches: fixed waves for a grid of any size, or learned on `grid` and interpolated to others.
            grid: patches along i, j, k that learned positions are made for.
            standardise: embedded patches, by their running mean and deviation, before their positions are added.
            pooling: the mean over tokens, or its mixture with their maximum by a linear layer that starts as the mean
                of the two.
        """

        patch: Voxels = (16, 16, 16)
        stem: tuple[int, ...] = ()
        width: int = Field(768, ge=6)
        depth: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)
        mlp_ratio: int = Field(4, ge=1)
        positions: Literal["waves", "learned"] = "waves"
        grid: Voxels = (8, 8, 8)
        standardise: bool = False
        pooling: Literal["mean", "mean_max"] = "mean"

        @model_validator(mode="after")
        def _sizes_fit(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"heads {self.heads} must divide width {self.width}")
            if min(*self.patch, *self.grid) < 1:
                raise ValueError(f"patch {self.patch} and grid {self.grid} must be positive")
            if any(edge > 1 and edge % 2 ** len(self.stem) for edge in self.patch):
                raise ValueError(
                    f"a patch of {self.patch} voxels cannot be halved {len(self.stem)} times, as stem wants"
                )
            return self

        def build(self) -> ViT:
            """Make the module."""
            return ViT(self)

    def __init__(self, config: ViT.Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.patch = config.patch
        # One number a map is the contract: the longest edge, since an image has no other step along k. A stem that ends
        # at one voxel a patch has a last map of the tokens' own stride, which is left out.
        finer = [2 ** (at + 1) for at in range(len(config.stem)) if 2 ** (at + 1) < max(config.patch)]
        self.widths = (*config.stem[: len(finer)], config.width)
        self.strides = (*finer, max(config.patch))
        self.embedding = config.width
        # Kept as a convolution, so that `weights.adapt_input` knows the input channels; applied as a linear map.
        widths, left = (config.in_channels, *config.stem), config.patch
        halvings: list[nn.Module] = []
        for before, after in pairwise(widths):
            halvings += [_halving(before, after, left), nn.GELU()]
            left = _halved(left)
        self.stem = nn.Sequential(*halvings)
        self.embed = nn.Conv3d(widths[-1], config.width, left, stride=left)
        self.standardiser = RunningStandardiser(config.width) if config.standardise else None
        self.learned = (
            nn.Parameter(torch.empty(1, config.width, *config.grid)) if config.positions == "learned" else None
        )
        hidden = config.mlp_ratio * config.width
        self.blocks = nn.ModuleList(
            _Block(config.width, heads=config.heads, hidden=hidden) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.mix = nn.Linear(2 * config.width, config.width) if config.pooling == "mean_max" else None
        self._initialise()

    def _initialise(self) -> None:
        """Uniform by fan-in and fan-out (code: MAE); small positions; the mixture as the mean of its two halves."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed.weight.view(self.embedding, -1))
        assert self.embed.bias is not None
        nn.init.zeros_(self.embed.bias)
        if self.learned is not None:
            nn.init.trunc_normal_(self.learned, std=0.02)
        if self.mix is not None:
            with torch.no_grad():
                self.mix.weight.copy_(torch.eye(self.embedding).repeat(1, 2) / 2)

    def forward(self, volumes: Volumes) -> VisionFeatures:
        """Encode volumes of any size; an edge that the patch does not divide is filled up with zeros at its far end.

        Raises:
            ValueError: the number of channels is not the one it was built for.
        """
        whole, grid = self.filled(volumes)
        finer, embedded = self._embed(patchify(whole, self.patch))
        tokens = self._attend(embedded + self.positions(grid, volumes))
        # What follows is a view of the map, so that gradients of the pooled vector reach it.
        map_ = tokens.transpose(1, 2).unflatten(2, grid)
        tokens = map_.flatten(2).transpose(1, 2)
        maps = (joined_boxes(boxes, grid) for boxes in finer[: len(self.strides) - 1])
        return VisionFeatures(pyramid=(*maps, map_), tokens=tokens, pooled=self.pool(tokens))

    def encode_visible(self, volumes: Volumes, visible: Bool[Tensor, "b p"]) -> Float[Tensor, "b _n e"]:
        """Tokens of the visible patches alone, in order; what the others hold is never read.

        Raises:
            ValueError: patches do not tile the volumes, `visible` is of another grid, or studies show different numbers
                of patches, or none.
        """
        grid = self._grid(volumes)
        if visible.shape[1] != grid[0] * grid[1] * grid[2]:
            raise ValueError(f"visible names {visible.shape[1]} patches, the volumes have {grid} of them")
        self._check_channels(volumes)
        _, shown = self._embed(take_visible(patchify(volumes, self.patch), visible))
        positions = self.positions(grid, volumes).expand(len(volumes), -1, -1)
        return self._attend(shown + take_visible(positions, visible))

    def pool(self, tokens: Float[Tensor, "b p e"]) -> Float[Tensor, "b e"]:
        """One vector of any number of tokens, as `forward` gives it for all of them."""
        mean = tokens.mean(1)
        return mean if self.mix is None else self.mix(torch.cat([mean, tokens.amax(1)], dim=1))

    def positions(self, grid: Voxels, like: Tensor) -> Float[Tensor, "1 p e"]:
        """What is added to the embedding of each patch of a grid, on the device and in the precision of `like`."""
        if self.learned is None:
            return waves(grid, self.embedding).to(like)[None]
        fitted: Tensor = self.learned
        if fitted.shape[2:] != grid:
            fitted = F.interpolate(fitted, size=grid, mode="trilinear", align_corners=False)
        return fitted.flatten(2).transpose(1, 2)

    def _check_channels(self, volumes: Tensor) -> None:
        if volumes.shape[1] != self.in_channels:
            raise ValueError(f"this encoder reads {self.in_channels} channels, the volumes have {volumes.shape[1]}")

    def _grid(self, volumes: Tensor) -> Voxels:
        i, j, k = volumes.shape[2:]
        return patch_grid((i, j, k), self.patch)

    def filled(self, volumes: Tensor) -> tuple[Tensor, Voxels]:
        """The volumes filled up to whole patches, and their grid."""
        self._check_channels(volumes)
        filled = fill_up(volumes, self.patch)
        return filled, self._grid(filled)

    def centre(self, stage: int) -> float:
        """Of a map of the stem the first voxel, on which its padded convolutions of three are centred."""
        return super().centre(stage) if self.strides[stage] == self.strides[-1] else 0.0

    def _embed(self, patches: Float[Tensor, "b p v"]) -> tuple[list[Boxes], Float[Tensor, "b p e"]]:
        """What each convolution of the stem makes of each patch, and the embedding of what the last one made."""
        finer: list[Boxes] = []
        if len(self.stem):
            boxes, halvings = patches.reshape(-1, self.in_channels, *self.patch), list(self.stem)
            for convolve, activate in zip(halvings[::2], halvings[1::2], strict=True):
                boxes = activate(convolve(boxes))
                finer.append(boxes.unflatten(0, patches.shape[:2]))
            patches = finer[-1].flatten(2)
        embedded = F.linear(patches, self.embed.weight.flatten(1), self.embed.bias)
        if self.standardiser is not None:
            embedded = self.standardiser(embedded.flatten(0, 1)).view_as(embedded)
        return finer, embedded

    def _attend(self, tokens: Float[Tensor, "b p e"]) -> Float[Tensor, "b p e"]:
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


def joined_boxes(boxes: Boxes, grid: Voxels) -> Float[Tensor, "b _c _i _j _k"]:
    """The map that boxes of one size, one a patch of a grid, are cut from."""
    i, j, k = boxes.shape[3:]
    apart = boxes.transpose(1, 2).unflatten(2, grid)  # (b, c, grid of three, box of three)
    return apart.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(
        len(boxes), boxes.shape[2], grid[0] * i, grid[1] * j, grid[2] * k
    )


def _halved(patch: Voxels) -> Voxels:
    i, j, k = (max(1, edge // 2) for edge in patch)
    return i, j, k


def _halving(before: int, after: int, patch: Voxels) -> nn.Conv3d:
    """Of each axis that has more than one voxel."""
    i, j, k = (int(edge > 1) for edge in patch)
    return nn.Conv3d(before, after, (1 + 2 * i, 1 + 2 * j, 1 + 2 * k), stride=(1 + i, 1 + j, 1 + k), padding=(i, j, k))


class _Block(nn.Module):
    """Self-attention and an MLP, each behind a norm and added to its input."""

    def __init__(self, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(split[0], split[1], split[2]).transpose(1, 2).flatten(2)
        tokens = tokens + self.proj(heard)
        return tokens + self.mlp(self.norm2(tokens))


@lru_cache(maxsize=16)
def waves(grid: Voxels, width: int) -> Float[Tensor, "p e"]:
    """Sines and cosines of each patch's index along i, j, k: a third of the width an axis, zeros in what is left over.

    Half of a third are sines and half cosines, at wave lengths from 2 pi to 10,000 times that (Vaswani 2017, sec. 3.5).
    """
    half = width // 6
    # Not made under inference mode: the table is kept, and is used in training too.
    with torch.inference_mode(False):
        table = torch.zeros(grid[0] * grid[1] * grid[2], width)
        indices = torch.meshgrid(*(torch.arange(edge, dtype=torch.float64) for edge in grid), indexing="ij")
        frequencies = LONGEST_WAVE ** -(torch.arange(half, dtype=torch.float64) / half)
        for axis, index in enumerate(indices):
            angles = index.flatten()[:, None] * frequencies
            table[:, 2 * half * axis : 2 * half * (axis + 1)] = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    return table


def tiny() -> ViT.Config:
    """For tests and CPUs: patches of 8^3, 0.5 million parameters."""
    return ViT.Config(patch=(8, 8, 8), width=96, depth=4, heads=4)


def small() -> ViT.Config:
    """ViT-S/16 in 3D: 23 million parameters."""
    return ViT.Config(width=384, heads=6)


def base() -> ViT.Config:
    """ViT-B/16 in 3D: 88 million parameters; `but(patch=(16, 16, 1))` is ViT-B/16 for images."""
    return ViT.Config()
