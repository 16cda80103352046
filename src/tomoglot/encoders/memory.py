"""A memory that images and reports both read, and a report reading its image through it (MA-CMF, MPMA-style).

The paper says that a memory-augmented module brings visual features into report reconstruction, and no more; the rest
is inferred, after R2GenCMN (Chen 2021), the nearest public mechanism:

| value                                              | mark     | source or reason                          |
|---|---|---|
| one learned matrix, read by both sides             | code     | R2GenCMN; same projections for both sides |
| 2048 slots of 512, 8 heads, the best 32 of a query | code     | R2GenCMN                                  |
| slots start normal with deviation 1 / width        | code     | R2GenCMN                                  |
| what was read is added to who read it              | inferred | R2GenCMN hands on the answer alone        |
| then the report reads the image, 3 layers          | inferred | code: R2GenCMN's decoder has 3            |
"""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.config import Settings
from tomoglot.encoders.fusion import Block


class Memory(nn.Module):
    """Learned slots from which each token reads a mixture, by several heads."""

    def __init__(self, width: int, *, slots: int, heads: int, best: int | None) -> None:
        super().__init__()
        self.heads, self.best = heads, best
        self.matrix = nn.Parameter(torch.randn(slots, width) / width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Float[Tensor, "n t e"]) -> Float[Tensor, "n t e"]:
        """What each token reads: per head, the softmax over all slots, or over the `best` for the token alone."""
        query = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part(self.matrix).unflatten(1, (self.heads, -1)).transpose(0, 1) for part in (self.key, self.value)
        )
        if self.best is None:
            # One more row of queries a token is cheaper than one more copy of the memory a study.
            rows = query.transpose(0, 1).flatten(1, 2)
            mixed = F.scaled_dot_product_attention(rows, key, value)
            mixed = mixed.unflatten(1, (len(tokens), -1)).transpose(0, 1)
        else:
            logits = query @ key.transpose(1, 2) / query.shape[3] ** 0.5
            found = logits.topk(self.best, dim=3)
            shares = found.values.softmax(dim=3)
            mixed = torch.zeros_like(logits, dtype=shares.dtype).scatter(3, found.indices, shares) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class MemoryFusion(nn.Module):
    """MA-CMF: both sides at one width, each with what it read in the memory, then the report reads the image."""

    class Config(Settings):
        """Sizes of the fusion.

        Attributes:
            width: of both sides and of the memory.
            heads: of every attention.
            layers: in which the report reads the image.
            slots: of the memory; 0 is none.
            best: so many slots a token reads at most, per head; None reads all.
        """

        width: int = Field(512, ge=2)
        heads: int = Field(8, ge=1)
        layers: int = Field(3, ge=1)
        slots: int = Field(2048, ge=0)
        best: int | None = Field(32, ge=1)

        @model_validator(mode="after")
        def _sizes_fit(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"heads {self.heads} must divide width {self.width}")
            if self.best is not None and 0 < self.slots < self.best:
                raise ValueError(f"best is {self.best}, the memory has {self.slots} slots; None reads all of them")
            return self

    def __init__(self, config: Config, *, image_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.image_in, self.text_in = nn.Linear(image_width, config.width), nn.Linear(text_width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, heads=config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        # Last, so that without it everything else starts as it does with it.
        self.memory = (
            Memory(config.width, slots=config.slots, heads=config.heads, best=config.best) if config.slots else None
        )

    def forward(
        self,
        text: Float[Tensor, "n t _e"],
        image: Float[Tensor, "n p _v"],
        attended: Bool[Tensor, "n p"] | None = None,
    ) -> Float[Tensor, "n t _d"]:
        """The report's tokens after they read the image's `attended` tokens.

        Raises:
            ValueError: an image of fewer than two tokens.
        """
        return self.read(text, self.remember(image), attended)

    def remember(self, image: Float[Tensor, "n p _v"]) -> Float[Tensor, "n p d"]:
        """An image's tokens with what they read in the memory: the same whatever report reads them (`read`)."""
        return self._remembered(self.image_in(image))

    def read(
        self,
        text: Float[Tensor, "n t _e"],
        patches: Float[Tensor, "n p _d"],
        attended: Bool[Tensor, "n p"] | None = None,
    ) -> Float[Tensor, "n t _d"]:
        """The report's tokens after they read tokens that `remember` made of the image."""
        words = self._remembered(self.text_in(text))
        for block in self.blocks:
            words = block(words, patches, attended)
        return self.norm(words)

    def alone(self, text: Float[Tensor, "n t _e"]) -> Float[Tensor, "n t _d"]:
        """The report's tokens with neither memory nor image."""
        return self.norm(self.text_in(text))

    def _remembered(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return tokens if self.memory is None else tokens + self.memory(tokens)
