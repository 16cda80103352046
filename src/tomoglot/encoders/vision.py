"""The vision encoder's contract: volumes in, a pyramid, tokens and a pooled vector out.

A backbone is one file in this room with a subclass of `VisionEncoder` whose nested `Config` builds it. It is found by
its file name: ``VisionEncoder.Config.named("plain_conv:tiny")`` calls `tiny()` in `plain_conv.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from jaxtyping import Float
from torch import Tensor, nn

import tomoglot.encoders
from tomoglot.config import Settings, unknown_key


@dataclass(frozen=True, slots=True)
class VisionFeatures:
    """Feature maps from fine to coarse, the coarsest one as tokens, and one vector a volume."""

    pyramid: tuple[Float[Tensor, "b _width _i _j _k"], ...]
    tokens: Float[Tensor, "b p e"]
    pooled: Float[Tensor, "b e"]

    def rows(self, rows: slice) -> VisionFeatures:
        """Of some of the volumes that were encoded together."""
        pyramid = tuple(level[rows] for level in self.pyramid)
        return VisionFeatures(pyramid=pyramid, tokens=self.tokens[rows], pooled=self.pooled[rows])


class VisionEncoder(nn.Module, ABC):
    """Base of every backbone.

    Attributes:
        in_channels: channels of the input (one for the methods that read a sequence at a time).
        widths: channels of each map of the pyramid, fine to coarse.
        strides: voxels of the input to one step of each map.
        embedding: width of `tokens` and `pooled`.
    """

    in_channels: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    embedding: int

    class Config(Settings):
        """Settings of a backbone; subclasses add fields and say how to build."""

        in_channels: int = 1

        @classmethod
        def named(cls, name: str) -> Self:
            """Look up ``file:preset`` (or ``file``, which means its `small` preset) in this room.

            Raises:
                ValueError: no such file or preset; the nearest is named.
            """
            file, _, preset = name.partition(":")
            if file not in names():
                raise ValueError(unknown_key(name, file, names(), kind="vision encoder"))
            module = importlib.import_module(f"tomoglot.encoders.{file}")
            build = getattr(module, preset or "small", None)
            if build is None or not callable(build):
                raise ValueError(f"encoders/{file}.py has no preset {preset or 'small'!r}")
            config = build()
            if not isinstance(config, cls):
                raise ValueError(f"encoders/{file}.py: {preset!r} is not a preset")
            return config

        def build(self) -> VisionEncoder:
            """Make the module."""
            raise NotImplementedError

    @abstractmethod
    def forward(self, volumes: Float[Tensor, "b c i j k"]) -> VisionFeatures:
        """Encode volumes."""

    def centre(self, stage: int) -> float:
        """Voxel of the input, along each axis, that the first step of a map is centred on; steps lie a stride apart.

        Here the middle of the step, as patches have it. A backbone whose convolutions pad says otherwise.
        """
        return (self.strides[stage] - 1) / 2


# Files of this room that are not backbones.
PARTS = frozenset(
    {
        "vision",
        "text",
        "text_trained",
        "fusion",
        "gated_attention",
        "memory",
        "paired",
        "patches",
        "decoder",
        "skip_decoder",
        "standardise",
        "template",
        "covered",
    }
    | {"project", "weights", "width"}
)


def names() -> list[str]:
    """Backbones, by file name."""
    found = (module.name for module in pkgutil.iter_modules(tomoglot.encoders.__path__))
    return sorted(name for name in found if name not in PARTS)
