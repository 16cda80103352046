"""A small BERT that is trained with the recipe, on the ids of an existing tokenizer (Devlin 2019).

Unlike `text.FrozenTextEncoder` its weights are in the recipe's checkpoint and nothing is cached: they change with every
step. Only the tokenizer comes from outside, and on request the weights to start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tomoglot.batches.batch import Tokens
from tomoglot.batches.text import tokenise
from tomoglot.config import Settings
from tomoglot.encoders.text import TextEncoder, mean_by_sentence
from tomoglot.encoders.weights import load_weights


class TrainedTextEncoder(nn.Module):
    """Reports as states of their tokens.

    Attributes:
        embedding: width of every state.
        tokenizer: what cuts texts into word pieces.
    """

    class Config(Settings):
        """Sizes, and where the vocabulary comes from. The defaults are MRM's (code).

        Attributes:
            source: whose tokenizer it is: a folder with a transformers model; None is the packaged sentence encoder.
            start: from random weights, or from those of `source`, which must then be a BERT of this width; of its
                layers the first ones are taken.
            width: of a token.
            layers: of self-attention.
            heads: of attention; they divide the width.
            mlp_ratio: width of a layer's hidden part over its own.
            dropout: while training.
            max_tokens: what comes after is cut.
        """

        source: str | None = None
        start: Literal["random", "source"] = "random"
        width: int = Field(384, ge=2)
        layers: int = Field(6, ge=1)
        heads: int = Field(6, ge=1)
        mlp_ratio: int = Field(4, ge=1)
        dropout: float = Field(0.1, ge=0, lt=1)
        max_tokens: int = Field(100, ge=8)

        @model_validator(mode="after")
        def _heads_fit(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"heads {self.heads} must divide width {self.width}")
            return self

        def build(self) -> TrainedTextEncoder:
            """Make the network.

            Raises:
                ValueError: the tokenizer is not there or has no mask token, or the weights to start from do not fit.
            """
            return TrainedTextEncoder(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.embedding = config, config.width
        source = TextEncoder.Config(path=config.source).build()
        self.tokenizer: Any = source.tokenizer
        if self.tokenizer.mask_token_id is None:
            raise ValueError("this tokenizer has no mask token, so no word of a report can be hidden")
        theirs = source.pretrained if config.start == "source" else None
        positions = config.max_tokens if theirs is None else theirs.config.max_position_embeddings
        if config.max_tokens > positions:
            raise ValueError(f"max_tokens is {config.max_tokens}, the weights to start from read at most {positions}")
        if theirs is not None and theirs.config.num_attention_heads != config.heads:
            # Any number of heads would fit the weights, and only the right one gives their states.
            raise ValueError(
                f"heads is {config.heads}, the weights to start from have {theirs.config.num_attention_heads}"
            )
        sizes = BertConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_ratio * config.width,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=positions,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.network = BertModel(sizes, add_pooling_layer=False)
        if theirs is not None:
            load_weights(self.network, theirs.state_dict(), min_share=1.0)

    @property
    def word_vectors(self) -> Float[Tensor, "v e"]:
        """Input embedding of each word piece of the vocabulary; trained."""
        return self.network.get_input_embeddings().weight

    def tokenise(self, texts: Sequence[str | None]) -> Tokens:
        """Tokens of texts with their sentences and words, on the CPU; a text of None is all padding."""
        return tokenise(texts, self.tokenizer, self.config.max_tokens)

    def forward(self, tokens: Tokens, hidden: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, "b t e"]:
        """State of each token, zeros in padding; `hidden` tokens are read as the mask token."""
        ids, attended = tokens.ids, tokens.attended
        if hidden is not None:
            ids = ids.masked_fill(hidden & attended, self.tokenizer.mask_token_id)
        states = self.word_vectors.new_zeros(*ids.shape, self.embedding)
        # A text without a token has nothing that could attend.
        there = attended.any(dim=1)
        if there.any():
            found = self.network(input_ids=ids[there], attention_mask=attended[there].long()).last_hidden_state
            states[there] = found.to(states.dtype) * attended[there][..., None]
        return states


class Ranking(NamedTuple):
    """Hidden words to be found among the rows of a table: what was said of each, its row, the table and its bias."""

    rows: Float[Tensor, "n e"]
    words: Int[Tensor, " n"]
    table: Float[Tensor, "v e"]
    bias: Float[Tensor, " v"]


class WordHead(nn.Module):
    """Hidden words from what a fusion says of them: rows to compare with the word vectors of a vocabulary.

    A report of a speciality is made of some hundred word pieces, a vocabulary of 30,000, and a softmax over them costs
    more than a small encoder. With `only_met` a word is ranked among those that reports have shown so far: the answer
    is always one of them, and no other could ever be right.
    """

    met: Tensor

    def __init__(self, width: int, *, embedding: int, vocabulary: int, only_met: bool) -> None:
        super().__init__()
        self.only_met = only_met
        self.turn = nn.Sequential(nn.Linear(width, embedding), nn.GELU(), nn.LayerNorm(embedding))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        # Not bool, which not all backends can send between devices.
        self.register_buffer("met", torch.zeros(vocabulary, dtype=torch.uint8))

    def forward(
        self,
        outputs: Float[Tensor, "n f"],
        words: Int[Tensor, " n"],
        *,
        table: Float[Tensor, "v e"],
        shown: Int[Tensor, " s"],
    ) -> Ranking:
        """Rows for hidden `words`; `shown` are all word pieces of the reports, and are remembered while training."""
        rows = self.turn(outputs)
        if not self.only_met:
            return Ranking(rows, words, table, self.bias)
        ranked = self.met.bool()
        ranked[shown] = True
        if self.training:
            self.met.copy_(ranked)
        return Ranking(rows, ranked.cumsum(0)[words] - 1, table[ranked], self.bias[ranked])


def mean_by_word(
    states: Float[Tensor, "b t e"], word: Int[Tensor, "b t"]
) -> tuple[Float[Tensor, "b w e"], Bool[Tensor, "b w"]]:
    """Mean of the pieces of each word, and which words there are; pieces of word -1 are left out."""
    return mean_by_sentence(states, word, max(1, int(word.max()) + 1))


def pool_words(states: Float[Tensor, "b t e"], word: Int[Tensor, "b t"]) -> Float[Tensor, "b e"]:
    """Mean over all pieces of words; those of word -1 are left out, and a report without any has zeros."""
    counted = (word >= 0)[..., None].to(states.dtype)
    return (states * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
