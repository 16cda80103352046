"""Swin over volumes (Liu 2021; Hatamizadeh 2022): attention in windows, four stages that each halve the grid.

The network is MONAI's `SwinTransformer`, under its own names, so that released weights load through
`load_weights(encoder, tensors, strip="swinViT.")` or whatever stands before them in their file.

| value                                     | mark     | source or reason                               |
|---|---|---|
| width 48, depths 2-2-2-2, heads 3-6-12-24 | code     | MG-3D's "Swin-B" and MedMAP's: `base()`        |
| window 7, patch 2                         | code     | both                                           |
| width 96                                  | code     | MG-3D's "Swin-L": `large()`                    |
| maps normed over channels, no weights     | code     | MONAI's default, so both                       |
| `merging="six"` in `base()`, `large()`    | inferred | what MONAI did until 2025; no version is named |
| pooled: mean of the coarsest map          | code     | MedMAP: global average pool                    |
| `tiny()`, `small()`                       | inferred | ours                                           |

Until January 2025 MONAI's merging read two corners of each 2^3 steps twice and two never (its issue 8284); weights that
were trained so load into today's MONAI without a word and compute something else. So the merging is ours, and says
which corners it reads, whatever MONAI is installed.

Any size of input: an odd edge gets a plane of zeros at its far end before each halving (patch embedding and merging),
so that a map has the edge rounded up, and nothing is cropped. Within a stage a grid that windows do not tile is filled
up with zeros at its far end and cut back afterwards; those zeros are keys like any other, as in the training of the
released weights. A grid smaller than the window gets a smaller window.
"""

from __future__ import annotations

import importlib
from functools import partial
from itertools import product
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.types import Volumes

NUM_STAGES = 4
_PARTS = ("patch_embed", *(f"layers{stage}" for stage in range(1, NUM_STAGES + 1)))
Four = tuple[int, int, int, int]
_HALVES = tuple((i, j, k) for i, j, k in product((0, 1), repeat=3))
_FIRST = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
CORNERS = {
    "eight": (*_FIRST, (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "eight_in_order": _HALVES,
    "six": (*_FIRST, (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}
"""Which of the 2^3 steps of a map become one, in which order: MONAI's "merging" since 2025, its "mergingv2", and its
"merging" before."""


class Swin(VisionEncoder):
    """MONAI's Swin behind the vision encoder's contract: a pyramid of five maps, at strides 2 to 32."""

    class Config(VisionEncoder.Config):
        """Sizes of the network.

        Attributes:
            width: channels of the first map; each later one of the four stages doubles them.
            depths: blocks of each stage, every second one with shifted windows.
            heads: of attention in each stage; they divide its channels.
            window: edge of a window, in steps of the map.
            mlp_ratio: width of a block's hidden layer over its own.
            merging: which of eight steps become one, see `CORNERS`.
            checkpointing: keep no activations within blocks, and compute them again for the gradient.
        """

        width: int = Field(48, ge=1)
        depths: Four = (2, 2, 2, 2)
        heads: Four = (3, 6, 12, 24)
        window: int = Field(7, ge=2)
        mlp_ratio: float = Field(4.0, gt=0)
        merging: Literal["eight", "eight_in_order", "six"] = "eight"
        checkpointing: bool = False

        @model_validator(mode="after")
        def _heads_fit(self) -> Self:
            widths = [self.width * 2**stage for stage in range(NUM_STAGES)]
            if any(width % heads for width, heads in zip(widths, self.heads, strict=True)):
                raise ValueError(f"heads {self.heads} must divide the channels of their stages, {widths}")
            if min(self.depths) < 1:
                raise ValueError(f"depths {self.depths}: each stage needs a block")
            return self

        def build(self) -> Swin:
            """Make the module.

            Raises:
                ValueError: MONAI is not installed.
            """
            return Swin(self)

    def __init__(self, config: Swin.Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        # The patch embedding's map, and what comes out of each stage, after its merging.
        self.widths = tuple(config.width * 2**level for level in range(NUM_STAGES + 1))
        self.strides = tuple(2 ** (level + 1) for level in range(NUM_STAGES + 1))
        self.embedding = self.widths[-1]
        network = _monai_swin()(
            in_chans=config.in_channels,
            embed_dim=config.width,
            window_size=(config.window,) * 3,
            patch_size=(2, 2, 2),
            depths=config.depths,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            downsample=partial(_Merging, corners=CORNERS[config.merging]),
            use_checkpoint=config.checkpointing,
        )
        # Its parts under their own names: no prefix stands between a released name and ours.
        for name in _PARTS:
            self.add_module(name, getattr(network, name))

    def forward(self, volumes: Volumes) -> VisionFeatures:
        """Encode volumes of any size; an odd edge is rounded up at each map.

        Raises:
            ValueError: the number of channels is not the one it was built for.
        """
        if volumes.shape[1] != self.in_channels:
            raise ValueError(f"this encoder reads {self.in_channels} channels, the volumes have {volumes.shape[1]}")
        maps = [volumes]
        for name in _PARTS:
            part = self.get_submodule(name)
            # A stage is a list of one layer.
            for layer in part.children() if isinstance(part, nn.ModuleList) else (part,):
                maps.append(layer(maps[-1].contiguous()))
        pyramid = tuple(_normed(features) for features in maps[1:])
        tokens = pyramid[-1].flatten(2).transpose(1, 2)
        return VisionFeatures(pyramid=pyramid, tokens=tokens, pooled=tokens.mean(1))


class _Merging(nn.Module):
    """Steps of 2^3 side by side, normed, and brought to twice the channels of one; MONAI's names and arguments."""

    def __init__(
        self, dim: int, *, norm_layer: type[nn.LayerNorm], spatial_dims: int, corners: tuple[tuple[int, int, int], ...]
    ) -> None:
        super().__init__()
        assert spatial_dims == 3, "a stage of volumes"
        self.corners = corners
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, features: Tensor) -> Tensor:
        i, j, k = features.shape[1:4]
        even = F.pad(features, (0, 0, 0, k % 2, 0, j % 2, 0, i % 2))
        parts = [even[:, i::2, j::2, k::2] for i, j, k in self.corners]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


def _normed(features: Tensor) -> Tensor:
    """Each step of a map over its channels, without weights: what is given out, not what the next stage reads."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def _monai_swin() -> Any:
    """MONAI's class. Imported here and not above: its import takes seconds, and it is an extra."""
    try:
        importlib.import_module("einops")  # MONAI's Swin calls it, and MONAI does not ask for it
        return importlib.import_module("monai.networks.nets.swin_unetr").SwinTransformer
    except ImportError as error:
        raise ValueError("the Swin encoder needs MONAI and einops: pip install 'tomoglot[monai]'") from error


def tiny() -> Swin.Config:
    """For tests and CPUs: narrow, windows of 4."""
    return Swin.Config(width=12, heads=(1, 2, 4, 8), window=4)


def small() -> Swin.Config:
    """Half as wide as the released ones."""
    return Swin.Config(width=24)


def base() -> Swin.Config:
    """MG-3D's "Swin-B" and MedMAP's encoder (code)."""
    return Swin.Config(merging="six")


def large() -> Swin.Config:
    """MG-3D's "Swin-L" (code)."""
    return Swin.Config(width=96, merging="six")
