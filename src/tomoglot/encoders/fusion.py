"""Fusion of the sequences of a study with one another and with text: MedMAP's second stage (2026, arXiv 2602.23652).

The paper names two modules and gives no formula; its released code multiplies pooled vectors, and each of its
attentions has one key, so that the softmax is the constant 1. What follows is our reading, over token sets:

| value                                                        | mark     | source or reason |
|---|---|---|
| two streams, image and text (CSA)                            | stated   | method |
| text tokens query image tokens, image tokens query text      | inferred | the name, and what an attention needs |
| the streams are joined into one token set a sequence         | inferred | `streams` keeps one of them alone |
| transformer over the tokens of all sequences (CCT)           | inferred | the paper names it, no more |
| a learned vector a sequence, a CLS token, absent ones masked | inferred | any subset may be acquired |
| pre-norm blocks                                              | code     | its decoders |
| layers, heads, width                                         | inferred | code: 6 layers, 8 heads, single vectors |

Attention over a single key is refused (`Attention`): it would hand on its one value whatever was asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.encoders.standardise import RunningStandardiser
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.types import Acquired

Streams = Literal["both", "semantic", "visual"]


class Attention(nn.Module):
    """Softmax attention of queries over two keys or more (Vaswani 2017, sec. 3.2)."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be shared by {heads} heads; make it a multiple")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[Tensor, "n q e"],
        keys: Float[Tensor, "n k e"],
        attended: Bool[Tensor, "n k"] | None = None,
    ) -> Float[Tensor, "n q e"]:
        """What the keys say to each query. Keys that are not `attended` have no say.

        Raises:
            ValueError: a row has fewer than two keys.
        """
        _refuse_single_key(keys, attended)
        query, key, value = self._heads(queries, keys)
        mask = None if attended is None else attended[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def weights(
        self,
        queries: Float[Tensor, "n q e"],
        keys: Float[Tensor, "n k e"],
        attended: Bool[Tensor, "n k"] | None = None,
    ) -> Float[Tensor, "n q k"]:
        """Share that each key has in each query's mixture, the mean over heads."""
        query, key, _ = self._heads(queries, keys)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if attended is not None:
            logits = logits.masked_fill(~attended[:, None, None, :], -torch.inf)
        return logits.softmax(dim=-1).mean(dim=1)

    def _heads(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, value = self.key_value(keys).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(queries), key, value)
        )
        return query, key, value


class Block(nn.Module):
    """Pre-norm attention and a feed-forward layer, each added to what came in; without a context it asks itself."""

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.query_norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[Tensor, "n q e"],
        context: Float[Tensor, "n k e"] | None = None,
        attended: Bool[Tensor, "n k"] | None = None,
    ) -> Float[Tensor, "n q e"]:
        """The tokens after one look at the context."""
        tokens = tokens + self.dropout(self.attention(*self._normed(tokens, context), attended))
        return tokens + self.dropout(self.feed_forward(self.forward_norm(tokens)))

    def weights(
        self, tokens: Float[Tensor, "n q e"], attended: Bool[Tensor, "n q"] | None = None
    ) -> Float[Tensor, "n q q"]:
        """How much each token looks at each other, where they ask themselves."""
        return self.attention.weights(*self._normed(tokens, None), attended)

    def _normed(self, tokens: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        asking = self.query_norm(tokens)
        return asking, self.context_norm(tokens if context is None else context)


class SemanticAggregation(nn.Module):
    """CSA: the image tokens of one sequence and the text tokens ask one another, in two streams."""

    def __init__(
        self, width: int, *, heads: int = 4, layers: int = 1, streams: Streams = "both", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.streams = streams

        def stack(stream: Streams) -> nn.ModuleList:
            depth = layers if streams in ("both", stream) else 0
            return nn.ModuleList(Block(width, heads=heads, dropout=dropout) for _ in range(depth))

        self.semantic, self.visual = stack("semantic"), stack("visual")

    def forward(
        self, image: Float[Tensor, "n p e"], text: Float[Tensor, "t e"]
    ) -> dict[Literal["semantic", "visual"], Float[Tensor, "n _q e"]]:
        """The streams that are kept: the texts as the image answers them (t), the image as the texts colour it (p).

        Raises:
            ValueError: one image token, or one text token, to attend to.
        """
        texts = text.expand(len(image), *text.shape)
        found: dict[Literal["semantic", "visual"], Tensor] = {}
        if self.streams != "visual":
            asked = texts
            for block in self.semantic:
                asked = block(asked, image)
            found["semantic"] = asked
        if self.streams != "semantic":
            seen = image
            for block in self.visual:
                seen = block(seen, texts)
            found["visual"] = seen
        return found


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens of the acquired sequences behind a CLS token (b, 1 + m q, e), and where each came from."""

    tokens: Float[Tensor, "b l e"]
    attended: Bool[Tensor, "b l"]
    order: Tensor


class CognitionTransformer(nn.Module):
    """CCT: a transformer over the tokens of all acquired sequences of a study and a CLS token.

    Each sequence adds a learned vector of its own to its tokens, found by its name, so the order of the channels does
    not matter. Absent sequences are left out or masked: whatever stands in their place changes nothing.
    """

    def __init__(
        self, width: int, sequences: tuple[str, ...], *, heads: int = 4, layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.sequences = sequences
        self.kind = nn.Parameter(0.02 * torch.randn(len(sequences), width))
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(Block(width, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "b c q e"], acquired: Acquired, sequences: tuple[str, ...]
    ) -> Float[Tensor, "b e"]:
        """The CLS token of each study.

        Raises:
            ValueError: a study without any acquired sequence, or a sequence that this transformer does not know.
        """
        packed = self._pack(tokens, acquired, sequences)
        hidden = packed.tokens
        for block in self.blocks:
            hidden = block(hidden, None, packed.attended)
        return self.norm(hidden[:, 0])

    def rollout(
        self, tokens: Float[Tensor, "b c q e"], acquired: Acquired, sequences: tuple[str, ...]
    ) -> Float[Tensor, "b c q"]:
        """How much of CLS comes from each token: attention rollout (Abnar and Zuidema 2020, sec. 4); 0 where absent."""
        packed = self._pack(tokens, acquired, sequences)
        hidden = packed.tokens
        itself = torch.eye(hidden.shape[1], device=hidden.device)
        flow = itself.expand(len(hidden), -1, -1)
        for block in self.blocks:
            assert isinstance(block, Block)
            # Half of a token goes past the attention, by the residual connection.
            flow = (block.weights(hidden, packed.attended) + itself) / 2 @ flow
            hidden = block(hidden, None, packed.attended)
        shares = (flow[:, 0] * packed.attended)[:, 1:].unflatten(1, (packed.order.shape[1], -1))
        found = shares.new_zeros(tokens.shape[:3])
        return found.scatter(1, packed.order[..., None].expand(-1, -1, shares.shape[2]), shares)

    def _pack(self, tokens: Tensor, acquired: Tensor, sequences: tuple[str, ...]) -> Packed:
        """Acquired sequences first, and no more of them than the study with the most has."""
        unknown = [name for name in sequences if name not in self.sequences]
        if unknown:
            raise ValueError(f"no sequence {', '.join(unknown)} was learned; known: {', '.join(self.sequences)}")
        counts = acquired.sum(dim=1)
        if int(counts.min()) == 0:
            raise ValueError(
                f"{int((counts == 0).sum())} of {len(counts)} studies have no acquired sequence: nothing can be fused"
            )
        rows = torch.tensor([self.sequences.index(name) for name in sequences], device=tokens.device)
        there = acquired[:, :, None, None]
        named = torch.where(there, tokens + self.kind[rows][:, None, :], 0)
        order = (~acquired).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
        index = order[:, :, None, None].expand(-1, -1, *tokens.shape[2:])
        kept = named.gather(1, index).flatten(1, 2)
        attended = acquired.gather(1, order).repeat_interleave(tokens.shape[2], dim=1)
        first = self.cls.expand(len(tokens), 1, -1)
        return Packed(
            tokens=torch.cat([first.to(kept.dtype), kept], dim=1),
            attended=F.pad(attended, (1, 0), value=True),
            order=order,
        )


class SequenceTokens(nn.Module):
    """One volume as tokens of one width: its pooled vector, then the steps of one map of the pyramid, with places."""

    def __init__(self, encoder: VisionEncoder, width: int, *, stride: int) -> None:
        super().__init__()
        # The map whose stride is nearest, by ratio; of two alike, the finer one.
        self.level = min(range(len(encoder.strides)), key=lambda at: abs(math.log(encoder.strides[at] / stride)))
        self.stride, self.width = encoder.strides[self.level], width
        map_width = encoder.widths[self.level]
        self.pooled = nn.Sequential(RunningStandardiser(encoder.embedding), nn.Linear(encoder.embedding, width))
        self.steps = nn.Sequential(RunningStandardiser(map_width), nn.Linear(map_width, width))

    def forward(self, features: VisionFeatures) -> Float[Tensor, "n q _width"]:
        """Tokens, the pooled one first."""
        chosen = self.chosen(features)
        i, j, k = chosen.shape[2:]
        steps = chosen.flatten(2).transpose(1, 2)
        places = grid_positions((i, j, k), stride=self.stride, width=self.width).to(steps)
        embedded = self.steps(steps.flatten(0, 1)).unflatten(0, steps.shape[:2]) + places
        return torch.cat([self.pooled(features.pooled)[:, None], embedded], dim=1)

    def chosen(self, features: VisionFeatures) -> Float[Tensor, "n _map i j k"]:
        """The map that becomes tokens."""
        return features.pyramid[self.level]


def grid_positions(shape: tuple[int, int, int], *, stride: int, width: int) -> Float[Tensor, "p _width"]:
    """Sines and cosines of where each step of a map lies, in voxels from the centre (Vaswani 2017, sec. 3.5, in 3D).

    Wavelengths run from four steps to sixty-four. A width that is no multiple of six ends in zeros.
    """
    octaves = max(1, width // 6)
    lengths = 4.0 * stride * 16.0 ** torch.linspace(0, 1, octaves)
    parts = []
    for size in shape:
        place = (torch.arange(size) - (size - 1) / 2) * stride
        angle = 2 * math.pi * place[:, None] / lengths
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    i, j, k = shape
    grid = torch.cat(
        [
            parts[0][:, None, None].expand(i, j, k, -1),
            parts[1][None, :, None].expand(i, j, k, -1),
            parts[2][None, None, :].expand(i, j, k, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    return F.pad(grid[:, :width], (0, width - min(width, grid.shape[1])))


def _refuse_single_key(keys: Tensor, attended: Tensor | None) -> None:
    count = keys.shape[1] if attended is None else int(attended.sum(dim=1).min())
    if count < 2:
        raise ValueError(
            f"attention over {count} key{'s' * (count != 1)}: the softmax would be 1 whatever is asked; give two "
            "tokens or more (for text: more wordings or findings; for images: a finer token_stride)"
        )
