"""The network of MedMAP's second stage (2026, arXiv 2602.23652): sequences and text fused, findings out.

Four networks by two switches. `fusion="pooled"` without `aggregation` is a linear layer on the mean and the maximum of
the pooled vectors; `aggregation` adds CSA, each sequence's tokens and the text asking one another; `fusion="cct"` lets
a transformer read the tokens of all sequences. Both are in `encoders/fusion.py`, with their own marks.

The text is not the study's report, which would give the answer away: it is the frozen text encoder's vectors of the
findings' prompts (`queries/prompts.py`), the same for every study, through a learned projection.

| value                                              | mark     | source or reason |
|---|---|---|
| vision encoders trained, text encoder frozen       | stated   | method |
| projection of the text output                      | stated   | method |
| a fixed table of prompts as text                   | code     | its 15 prompts; what the paper takes is not known |
| all wordings of all findings asked                 | inferred | several text tokens, so that attention has keys |
| `text="learned"`: as many vectors, no words        | inferred | what the words are worth |
| image tokens: pooled vector and one map at stride 8 | inferred | a small lesion is lost at 16 |
| features standardised by running statistics        | inferred | as in stage 1: all features resemble one another |
| mean over acquired sequences where CCT is off      | inferred | any subset |
| pooled vectors go past the fusion to the last layer | inferred | `beside`; code: returns its raw concatenation |
| focal loss, gamma 2, alpha 0.25                    | code     | its trainer's default |
| KL from study to text, cosine ramp                 | code     | its trainer; there the supervised weight falls to 0 |
| floor 0.5 of the supervised weight                 | inferred | `supervised_floor`; 0 only where asked |
| text of a study: mean of what it has               | inferred | code: one prompt a set of labels |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import LoaderConfig
from tomoglot.config import Settings
from tomoglot.encoders.fusion import CognitionTransformer, SemanticAggregation, SequenceTokens, Streams
from tomoglot.objectives.classes import class_focal, known_cross_entropy, known_focal
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.tasks.embeddings import pool_acquired
from tomoglot.tasks.heads.kept import KeptCard, account_of, load_weights_kept, read_kept, settings_of, write_kept
from tomoglot.tasks.queries.prompt_table import PromptTable, text_encoder
from tomoglot.types import Acquired, Scalar

SHARED = "shared"
CARD = "detector.json"


class DetectorSettings(Settings):
    """Which network, and what it minimises.

    Attributes:
        form: `multi_label` (any finding may be there) or `one_of` (exactly one of the findings is).
        fusion: how sequences become one vector: their pooled ones, or `cct`.
        aggregation: CSA on the tokens of each sequence.
        streams: what CSA gives: both of its streams, or one.
        text: vectors of the findings' prompts, or learned ones without words.
        token_stride: voxels to one image token; the map nearest to it is taken.
        width: of tokens.
        heads: of every attention.
        layers: of CCT.
        dropout: in CSA and CCT.
        beside: what pre-training pooled of each sequence also goes past the fusion, straight to the last layer.
        loss: cross-entropy or focal.
        text_loss: add the divergence of the study's vector from the text of what it shows.
        supervised_floor: the supervised weight falls with half a cosine from 1 to this, where `text_loss` is on.
    """

    form: Literal["multi_label", "one_of"] = "multi_label"
    fusion: Literal["pooled", "cct"] = "pooled"
    aggregation: bool = False
    streams: Streams = "both"
    text: Literal["prompts", "learned"] = "prompts"
    token_stride: int = Field(8, ge=1)
    width: int = Field(96, ge=8)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    beside: bool = True
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    text_loss: bool = False
    supervised_floor: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads; make it a multiple")
        return self

    @property
    def fused(self) -> bool:
        """Whether there are tokens at all."""
        return self.aggregation or self.fusion == "cct"

    @property
    def reads_text(self) -> bool:
        """Whether vectors of prompts are needed."""
        return self.text_loss or (self.aggregation and self.text == "prompts")


class Detector(nn.Module):
    """A recipe's encoders, fusion, and a linear layer that starts at zero; keeps `Trainable`.

    Attributes:
        recipe: what encodes; `recipe.backbone(sequence)` is whose maps explain a decision.
        findings: what the logits are of, in order.
    """

    prompts: Tensor
    prompt_finding: Tensor

    def __init__(
        self,
        recipe: Recipe,
        settings: DetectorSettings,
        findings: tuple[str, ...],
        *,
        embedding: int,
        table: PromptTable | None = None,
    ) -> None:
        """Build around a recipe, which is trained with it.

        Args:
            recipe: is not copied.
            settings: which network.
            findings: what is asked.
            embedding: width of the recipe's pooled vectors.
            table: of the prompts, where the settings read text; None asks the recipe's text encoder, or the packaged.

        Raises:
            ValueError: there is nothing but one token to attend to.
        """
        super().__init__()
        self.recipe, self.settings, self.findings, self.embedding = recipe, settings, findings, embedding
        width = settings.width
        if settings.fused:
            self._add_fusion()
        feature = 2 * embedding if not settings.fused else width
        if settings.aggregation and settings.fusion == "pooled":
            feature = width * (2 if settings.streams == "both" else 1)
        if settings.fused and settings.beside:
            feature += 2 * width
        self.head = nn.Linear(feature, len(findings))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if settings.reads_text or settings.aggregation:
            self._add_text(table)
        self.to_text = nn.Linear(feature, self.prompts.shape[1]) if settings.text_loss else None

    def forward(self, batch: Batch) -> Float[Tensor, "b f"]:
        """Logits from what was acquired."""
        return self.judge(self.read(batch), batch.acquired, batch.sequences)

    def probabilities(self, logits: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        """Of each finding, or of each class."""
        return logits.float().softmax(dim=1) if self.settings.form == "one_of" else logits.float().sigmoid()

    def read(self, batch: Batch) -> Float[Tensor, "b c q e"]:
        """What each acquired sequence says by itself, zeros elsewhere; every subset is judged from this."""
        if not self.settings.fused:
            return self.recipe.encode(batch)[:, :, None]
        parts = {}
        for name, features in self.recipe.features(batch).items():
            tokens = self._embedder(name)(features)
            parts[name] = self._beside(self._aggregate(tokens) if self.settings.aggregation else tokens, tokens[:, :1])
        if not parts:
            raise ValueError("no study of the batch has an acquired sequence: there is nothing to detect in")
        shape = next(iter(parts.values())).shape[1:]
        found = batch.volumes.new_zeros((*batch.acquired.shape, *shape))
        for name, tokens in parts.items():
            column = batch.sequences.index(name)
            found[batch.acquired[:, column], column] = tokens.to(found.dtype)
        return found

    def judge(
        self, tokens: Float[Tensor, "b c q e"], shown: Acquired, sequences: tuple[str, ...]
    ) -> Float[Tensor, "b f"]:
        """Logits from the sequences that are shown.

        Raises:
            ValueError: a study of which no sequence is shown.
        """
        return self.head(self._fuse(tokens, shown, sequences))

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """The supervised loss over what is known, and with `text_loss` the divergence from the text."""
        feature = self._fuse(self.read(batch), batch.acquired, batch.sequences)
        name, supervised = self._supervised(self.head(feature), batch)
        if self.to_text is None:
            return {name: supervised}
        weight = max(self.settings.supervised_floor, (1 + math.cos(math.pi * progress)) / 2)
        return {name: weight * supervised, "text": (1 - weight) * self._divergence(feature, batch)}

    def attention(self, batch: Batch) -> Float[Tensor, "b c i j k"]:
        """How much of the decision comes from each place of each sequence: CCT's rollout on the map's grid.

        Raises:
            ValueError: the network has no CCT, or CSA hands on no image tokens.
        """
        if self.settings.fusion != "cct" or (self.settings.aggregation and self.settings.streams == "semantic"):
            raise ValueError("only a network with fusion='cct' that keeps image tokens has attention over places")
        shares = self.cct.rollout(self.read(batch), batch.acquired, batch.sequences)
        name, features = next(iter(self.recipe.features(batch).items()))
        i, j, k = self._embedder(name).chosen(features).shape[2:]
        if self.settings.beside:
            shares = shares[:, :, :-1]
        return shares[:, :, -i * j * k :].unflatten(2, (i, j, k))

    def _add_fusion(self) -> None:
        settings, recipe = self.settings, self.recipe
        encoders = {name: recipe.backbone(name) for name in recipe.sequences}
        first = next(iter(encoders.values()))
        # Encoders of their own speak languages of their own; one encoder needs one projection.
        if all(encoder is first for encoder in encoders.values()):
            encoders = {SHARED: first}
        stride, width = settings.token_stride, settings.width
        self.tokens = nn.ModuleDict(
            {name: SequenceTokens(encoder, width, stride=stride) for name, encoder in encoders.items()}
        )
        heads, dropout = settings.heads, settings.dropout
        if settings.aggregation:
            self.csa = SemanticAggregation(width, heads=heads, streams=settings.streams, dropout=dropout)
        if settings.fusion == "cct":
            self.cct = CognitionTransformer(
                width, recipe.sequences, heads=heads, layers=settings.layers, dropout=dropout
            )

    def _embedder(self, sequence: str) -> SequenceTokens:
        found = self.tokens[sequence if sequence in self.tokens else SHARED]
        assert isinstance(found, SequenceTokens)
        return found

    def _add_text(self, table: PromptTable | None) -> None:
        if table is None:
            table = PromptTable.of(self.findings, text_encoder(self.recipe) if self.settings.reads_text else None)
        # Sentences of one kind resemble one another; what they share says nothing.
        vectors = F.normalize(table.vectors - table.vectors.mean(dim=0), dim=1)
        self.register_buffer("prompts", vectors)
        self.register_buffer("prompt_finding", table.finding)
        width = self.settings.width
        if self.settings.aggregation and self.settings.text == "prompts":
            self.text_projection = nn.Linear(vectors.shape[1], width)
        elif self.settings.aggregation:
            self.learned_text = nn.Parameter(0.02 * torch.randn(len(vectors), width))

    def _aggregate(self, tokens: Float[Tensor, "n p e"]) -> Float[Tensor, "n _q _e"]:
        """CSA on one sequence: the joined token set, or its streams' means where no CCT follows."""
        text = self.text_projection(self.prompts) if self.settings.text == "prompts" else self.learned_text
        streams = list(self.csa(tokens, text).values())
        if self.settings.fusion == "cct":
            return torch.cat(streams, dim=1)
        # A mean of each: texts are few, and would be lost among the image's steps.
        return torch.cat([stream.mean(dim=1, keepdim=True) for stream in streams], dim=2)

    def _fuse(
        self, tokens: Float[Tensor, "b c q e"], shown: Acquired, sequences: tuple[str, ...]
    ) -> Float[Tensor, "b _feature"]:
        fused, width = self.settings.fused and self.settings.beside, self.settings.width
        if self.settings.fusion == "cct":
            first = self.cct(tokens, shown, sequences)
            return torch.cat([first, pool_acquired(tokens[:, :, -1], shown)], dim=1) if fused else first
        if not self.settings.aggregation:
            return pool_acquired(tokens[:, :, 0], shown)
        counts = shown.sum(dim=1)[:, None]
        if int(counts.min()) == 0:
            raise ValueError("a study has no acquired sequence: there is nothing to detect in")
        streams = tokens[:, :, 0, :-width] if fused else tokens[:, :, 0]
        mean = (streams * shown[:, :, None]).sum(dim=1) / counts
        return torch.cat([mean, pool_acquired(tokens[:, :, 0, -width:], shown)], dim=1) if fused else mean

    def _beside(self, said: Float[Tensor, "n _q _e"], pooled: Float[Tensor, "n 1 _w"]) -> Float[Tensor, "n _r _f"]:
        """The pooled token once more behind what the fusion reads: as one more token, or where CSA gave one, in it."""
        if not self.settings.beside:
            return said
        return torch.cat([said, pooled], dim=1 if self.settings.fusion == "cct" else 2)

    def _supervised(self, logits: Float[Tensor, "b f"], batch: Batch) -> tuple[str, Scalar]:
        focal = self.settings.loss == "focal"
        if self.settings.form == "one_of":
            classes = batch.labels.argmax(dim=1)
            if focal:
                return "focal", class_focal(logits, classes)
            return "cross_entropy", F.cross_entropy(logits, classes)
        if focal:
            return "focal", known_focal(logits, batch.labels, batch.labelled)
        return "bce", known_cross_entropy(logits, batch.labels, batch.labelled)

    def _divergence(self, feature: Float[Tensor, "b _feature"], batch: Batch) -> Scalar:
        """KL of the softmax over the study's vector from that over the mean vector of what the study has."""
        assert self.to_text is not None
        present = (batch.labels > 0.5) & batch.labelled
        chosen = present[:, self.prompt_finding].to(feature.dtype)
        shown = self.to_text(feature).log_softmax(dim=1)
        counts = chosen.sum(dim=1, keepdim=True)
        text = chosen @ self.prompts.to(feature.dtype) / counts.clamp(min=1)
        # Entries of a unit vector are all near zero, and so would their softmax be flat.
        told = (text / text.std(dim=1, keepdim=True).clamp(min=1e-6)).softmax(dim=1)
        terms = F.kl_div(shown, told, reduction="none").sum(dim=1, keepdim=True)
        return (terms * (counts > 0)).sum() / (counts > 0).sum().clamp(min=1)


class DetectorCard(KeptCard):
    """What a saved detector is, what it reads, and which subjects it learned from (salted digests).

    `thresholds` call a finding present; they were chosen on the val split of the training, where it had one.
    """

    recipe: SerializeAsAny[Recipe.Config]
    settings: DetectorSettings
    sequences: tuple[str, ...]
    findings: tuple[str, ...]
    embedding: int
    prompts: tuple[int, ...] | None
    loader: LoaderConfig
    thresholds: dict[str, float] = Field(default_factory=dict)


def save_detector(
    folder: Path,
    net: Detector,
    *,
    plan: Plan,
    loader: LoaderConfig,
    simulated: bool,
    learned_from: set[str],
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Write weights and card, each whole or not at all; returns the folder.

    Raises:
        ValueError: the recipe does not keep the settings that built it.
    """
    card = DetectorCard(
        recipe=settings_of(net.recipe, "detector"),
        settings=DetectorSettings(**{name: getattr(net.settings, name) for name in DetectorSettings.model_fields}),
        sequences=net.recipe.sequences,
        findings=net.findings,
        embedding=net.embedding,
        prompts=tuple(net.prompts.shape) if hasattr(net, "prompts") else None,
        plan=plan,
        loader=loader,
        simulated=simulated,
        thresholds=dict(thresholds or {}),
        **account_of(learned_from),
    )
    return write_kept(folder, CARD, card, net)


def read_card(folder: Path) -> DetectorCard:
    """What the detector in this folder is.

    Raises:
        ValueError: there is none.
    """
    return read_kept(folder, CARD, DetectorCard, hint="the folder `detector` that transfer abnormality --out wrote")


def load_detector(folder: Path) -> Detector:
    """A saved detector, ready to judge: in evaluation mode, on the CPU.

    Raises:
        ValueError: there is none, or its weights do not fit its card.
    """
    card = read_card(folder)
    table = None
    if card.prompts is not None:
        # The prompts' vectors come with the weights; only their shape is needed here.
        table = PromptTable(vectors=torch.zeros(card.prompts), finding=torch.zeros(card.prompts[0], dtype=torch.long))
    net = Detector(
        card.recipe.build(card.sequences), card.settings, card.findings, embedding=card.embedding, table=table
    )
    load_weights_kept(folder, net, what="detector", fit="its card")
    return net.eval()
