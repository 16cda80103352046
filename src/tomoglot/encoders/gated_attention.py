"""A study's volume and its report reading one another through a gate (MG-3D): softmax, sigmoid, or as released.

The released attention (code: local_attention.py) gives each token its **own** value, scaled by the mean of its gates to
the tokens of the other side: ``mean_i gate(t, i) v(t)``, written as a loop over every i. Since v(t) does not depend on
i, that is ``v(t) mean_i gate(t, i)`` exactly, and no t x i x e product is ever made (measured there: 122 times faster).
It also means that the other side enters by one number a token. "sigmoid" and "softmax" take the other side's values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.config import Settings
from tomoglot.encoders.vit import waves

Gate = Literal["softmax", "sigmoid", "own"]


class GatedAttention(nn.Module):
    """One head of attention from readers to what they read; nothing is added, nothing is normalised."""

    def __init__(self, width: int, *, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(
        self,
        readers: Float[Tensor, "n t e"],
        read: Float[Tensor, "n p e"],
        attended: Bool[Tensor, "n p"] | None = None,
        *,
        where: Float[Tensor, "1 p e"] | None = None,
    ) -> Float[Tensor, "n t e"]:
        """What each reader gets. Only `attended` tokens are read; a reader with nothing to read gets zeros.

        "softmax": the mean of values weighted by a softmax. "sigmoid": the mean over tokens of gate times value.
        "own": the reader's own value times its mean gate. `where` is added to what keys are made of, not to values.
        """
        query, key = self.query(readers), self.key(read if where is None else read + where)
        if attended is None:
            attended = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
        readable = attended.any(dim=1)[:, None, None]
        if self.gate == "softmax":
            # Rows with nothing to read attend to everything, and are cleared: a softmax over nothing is not a number.
            mask = attended[:, None, :] | ~readable
            return F.scaled_dot_product_attention(query, key, self.value(read), attn_mask=mask) * readable
        opened = torch.sigmoid(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])) * attended[:, None, :]
        count = attended.sum(dim=1).clamp(min=1)[:, None, None]
        if self.gate == "sigmoid":
            return opened @ self.value(read) / count
        return self.value(readers) * opened.sum(dim=2, keepdim=True) / count


class GatedReader(nn.Module):
    """Layers of gated attention to one memory, which stays as it was.

    With `residual` each layer adds what it read to its input, behind a norm; without (code) its output replaces the
    input, and with the gates "softmax" and "sigmoid" a reader then keeps nothing of its own but the question it asked.
    """

    def __init__(self, width: int, *, gate: Gate, layers: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList(GatedAttention(width, gate=gate) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if residual else nn.Identity() for _ in range(layers))

    def forward(
        self,
        readers: Float[Tensor, "n t e"],
        read: Float[Tensor, "n p e"],
        attended: Bool[Tensor, "n p"] | None = None,
    ) -> Float[Tensor, "n t e"]:
        """The readers after all layers."""
        for norm, layer in zip(self.norms, self.layers, strict=True):
            found = layer(norm(readers), read, attended)
            readers = readers + found if self.residual else found
        return readers


@dataclass(frozen=True, slots=True)
class Seen:
    """A map as tokens of the fusion's width, and waves that tell where each lies."""

    tokens: Float[Tensor, "n p d"]
    where: Float[Tensor, "1 p d"]

    @property
    def placed(self) -> Float[Tensor, "n p d"]:
        """Tokens that know where they lie."""
        return self.tokens + self.where

    @property
    def whole(self) -> Float[Tensor, "n d"]:
        """One vector a volume."""
        return self.tokens.mean(dim=1)


class GatedFusion(nn.Module):
    """A volume's map and a report at one width, each reading the other, and what single sentences read."""

    class Config(Settings):
        """How the two sides meet.

        Attributes:
            width: of both sides.
            layers: of each side's reading of the other.
            residual: what was read is added to the reader; else it takes its place.
            gate: of every reading.
            values: what a sentence's visual feature is made of: the image's values, or the sentence's own, which one
                vector of the image opens or shuts (code).
            apart: of a sentence's visual feature, subtract what the same sentence reads in the batch's other images.
        """

        width: int = Field(768, ge=6)
        layers: int = Field(2, ge=1)
        residual: bool = True
        gate: Gate = "softmax"
        values: Literal["image", "sentence"] = "image"
        apart: bool = True

    def __init__(self, config: Config, *, image_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        width, gate = config.width, config.gate
        self.image_in = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, width))
        self.text_in = nn.Linear(text_width, width)
        self.text_reads, self.image_reads = (
            GatedReader(width, gate=gate, layers=config.layers, residual=config.residual) for _ in range(2)
        )
        self.sentence_reads = GatedAttention(width, gate=gate if config.values == "image" else "own")

    def see(self, map_: Float[Tensor, "n v i j k"]) -> Seen:
        """Bring a map to this width; the grid may be of any size."""
        tokens = self.image_in(map_.flatten(2).transpose(1, 2))
        i, j, k = map_.shape[2:]
        return Seen(tokens, waves((i, j, k), tokens.shape[2]).to(tokens)[None])

    def read_sentences(self, sentences: Float[Tensor, "n s d"], seen: Seen) -> Float[Tensor, "n s d"]:
        """The visual feature of each sentence of each study."""
        memory, where = (seen.tokens, seen.where) if self.config.values == "image" else (seen.whole[:, None], None)
        if not self.config.apart:
            return self.sentence_reads(sentences, memory, where=where)
        everyone = sentences.flatten(0, 1).expand(len(memory), -1, -1)
        read = self.sentence_reads(everyone, memory, where=where)
        return apart_from_others(read.unflatten(1, sentences.shape[:2]))


def apart_from_others(read: Float[Tensor, "n n s d"]) -> Float[Tensor, "n s d"]:
    """What a study's sentences read in its own image, less the mean of what they read in all images of the batch.

    `read[i, j]` is what the sentences of study j read in image i. A sentence can be told by where it looks alone,
    whatever is there; that part is the same in every image, and is gone after this. So a loss on the result cannot be
    met by text. One study alone has no others: the result is zero.
    """
    own = torch.arange(len(read), device=read.device)
    return read[own, own] - read.mean(dim=0)
