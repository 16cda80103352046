"""MPMA-style, after Zhang 2023 (arXiv 2305.07920): an interpretation of ours, and no reproduction of the paper.

The paper, on 2D chest X-rays, has no public code and hardly a stated value; no number of it is claimed here. Hides
patches of a volume **and** words of its report at once, on the same pair. Encodes the visible patches alone, and the
report with its holes. Minimises, each with a weight that switches it off at 0:

    image   hidden patches, from the visible ones, by a light decoder; each patch normalised by itself
    report  hidden words, from the report with holes after it read the volume through a memory (MA-CMF)
    global  pooled volume against pooled report, both from what is visible (GLA)
    local   words against patches, both ways, from what is visible (GLA)

| value                                        | mark     | source or reason                                     |
|---|---|---|
| both sides of a pair are hidden at once      | stated   | the name; `masking="one_sided"` is the control       |
| alignment inside joint reconstruction        | stated   | abstract                                             |
| GLA: global and local alignment              | stated   | abstract; formulas inferred                          |
| MA-CMF: memory, volumes into report modelling| stated   | abstract; encoders/memory.py is inferred             |
| 0.75 of patches, visible ones encoded alone  | inferred | MRM and M3AE (code); `tiny` hides 0.5                |
| 0.5 of words, whole                          | inferred | MRM (code); M3AE hides 0.15, `tiny` 0.25             |
| per-patch normalised targets, hidden only    | inferred | MRM, M3AE (code)                                     |
| cross-entropy over hidden words only         | inferred | M3AE; MRM counts every position (code)               |
| decoder of 4 layers, 768 wide, 6 heads       | inferred | MRM (code); `tiny`'s are convolutions, ours          |
| ViT-B/16; BERT of 6 layers, 384 wide         | inferred | MRM (code)                                           |
| text from random weights; `tiny` from trained| inferred | MRM (code); M3AE and MGCA start trained (code)       |
| memory 2048 x 512, best 32, 3 layers         | inferred | R2GenCMN (code)                                      |
| weights 1, 1, 1, 1                           | inferred | MRM adds its two                                     |
| temperatures 0.07, local 0.1; 128 wide       | inferred | MGCA (code)                                          |
| words: visible ones, pieces averaged         | inferred | GLoRIA averages; hidden ones would be read off text  |
| patches of one value are not asked           | inferred | ours: air says nothing of a word                     |
| reports with equal words are all positives   | inferred | ours, as in MedMAP: many reports are the normal one  |
| one sequence a study and step (MR)           | inferred | ours; with more of them their tokens are read joined |
| AdamW 1.5e-4, decay 0.05, 40 of 200 epochs   | inferred | MRM (code); `tiny`'s decoder has a rate of its own   |

`tiny()` is ours. In 2D (`paper_2d()`) a volume has one voxel along k and a patch is (p, p, 1); nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch, Tokens
from tomoglot.batches.mask import report_keys
from tomoglot.encoders import vit
from tomoglot.encoders.decoder import PatchDecoder
from tomoglot.encoders.memory import MemoryFusion
from tomoglot.encoders.paired import Given, View, draw_pairs, fuse_texts, look
from tomoglot.encoders.patches import imaged_patches, patch_targets, real_voxels
from tomoglot.encoders.standardise import RunningStandardiser
from tomoglot.encoders.text_trained import TrainedTextEncoder, WordHead, mean_by_word, pool_words
from tomoglot.encoders.vit import ViT
from tomoglot.objectives.contrastive import gather_with_gradient, info_nce
from tomoglot.objectives.language import hidden_token_loss
from tomoglot.objectives.local_words import Ways, attention_maps, gather_rows, word_contrast
from tomoglot.recipes.recipe import OneEncoder, Recipe, nothing_of
from tomoglot.types import Scalar, SequenceEmbeddings

_TINY_RUN: dict[str, Any] = {
    "schedule.steps": 700,
    "schedule.warmup_steps": 50,
    "schedule.learning_rate": 5e-4,  # at 0.001 the text side becomes the same for all reports (results/mpma.md)
    "schedule.weight_decay": 0.05,
    "loader.batch_size": 16,
    "loader.sequences_per_study": 1,
    "loader.augment.jitter_voxels": 1,
    "loader.augment.scale": 0.05,
    "loader.augment.shift": 0.1,
}
_FULL_RUN: dict[str, Any] = {
    "schedule.learning_rate": 1.5e-4,  # code: MRM, and the next two
    "schedule.weight_decay": 0.05,
    "schedule.betas": (0.9, 0.95),
    "loader.sequences_per_study": 1,
}

# Presets of this file, with the run that each is meant for: a mark stands where a value is not ours.
PRESETS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("tiny", "masked_only", "aligned_only", "one_sided", "no_memory", "tiny_2d"), _TINY_RUN),
    "paper": {
        **_FULL_RUN,
        "schedule.steps": 100_000,
        "schedule.warmup_steps": 20_000,  # code: MRM, a fifth
        "loader.batch_size": 32,
        "loader.crop_voxels": (128, 128, 96),  # code: MG-3D
    },
    "paper_2d": {
        **_FULL_RUN,
        "schedule.steps": 290_000,  # code: MRM, 200 epochs of 370,000 pairs
        "schedule.warmup_steps": 58_000,  # code: MRM, 40 epochs
        "loader.batch_size": 256,  # code: MRM
        "loader.crop_voxels": (224, 224, 1),  # code: MRM
    },
}
TERMS = ("image", "report", "global", "local")


class MPMA(OneEncoder):
    """Both sides of a pair hidden at once, rebuilt and aligned from what is left."""

    vision: ViT

    class Config(Recipe.Config):
        """Every named component is a switch; the four weights switch the terms of the same names.

        Attributes:
            masking: "paired" hides both sides at once; "one_sided" makes two passes, each with one side whole.
            patch_share: of patches hidden; 0 hides none.
            word_share: of words hidden; 0 hides none.
            decoder_rate: learning rate of the volumes' decoder over that of the rest.
            sequences_read: of a study, at most so many a step, drawn at random.
            guide_report: hidden words are rebuilt by MA-CMF; else it is a language model.
            vocabulary: word pieces among which a hidden one is ranked: the "whole" tokenizer's, or those "met" so far.
            embedding: width shared by volumes and texts, and by patches and words.
            standardise: pooled vectors by their running mean and deviation, before they are projected.
            attention_temperature: of a word's mixture of patches, and of a patch's mixture of words.
            local_ways: who asks whom.
        """

        vision: SerializeAsAny[ViT.Config] = ViT.Config()
        text: TrainedTextEncoder.Config = TrainedTextEncoder.Config()
        fusion: MemoryFusion.Config = MemoryFusion.Config()
        decoder: PatchDecoder.Config = PatchDecoder.Config(width=768, layers=4, heads=6)
        masking: Literal["paired", "one_sided"] = "paired"
        patch_share: float = Field(0.75, ge=0, lt=1)
        word_share: float = Field(0.5, ge=0, lt=1)
        decoder_rate: float = Field(1.0, gt=0)
        sequences_read: int = Field(1, ge=1)
        image_weight: float = Field(1.0, ge=0)
        report_weight: float = Field(1.0, ge=0)
        global_weight: float = Field(1.0, ge=0)
        local_weight: float = Field(1.0, ge=0)
        guide_report: bool = True
        vocabulary: Literal["whole", "met"] = "whole"
        embedding: int = Field(128, ge=2)
        standardise: bool = False
        temperature: float = Field(0.07, gt=0)
        local_temperature: float = Field(0.1, gt=0)
        attention_temperature: float = Field(0.1, gt=0)
        local_ways: Ways = "both"

        @property
        def weights(self) -> dict[str, float]:
            """Weight of each term that is on."""
            return {name: weight for name in TERMS if (weight := getattr(self, f"{name}_weight")) > 0}

        @model_validator(mode="after")
        def _check(self) -> Self:
            if not self.weights:
                raise ValueError("all weights are 0: nothing would be minimised")
            for term, share in (("image", self.patch_share), ("report", self.word_share)):
                if term in self.weights and share == 0:
                    raise ValueError(f"nothing of the {term} is hidden: set {term}_weight to 0, or hide a share of it")
            return self

        def build(self, sequences: tuple[str, ...]) -> MPMA:
            """Make the encoders, the fusion and the heads."""
            return MPMA(self, sequences)

    def __init__(self, config: Config, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.sequences, self.aligned = config, sequences, "global" in config.weights
        self.vision, self.text = config.vision.build(), config.text.build()
        if self.vision.in_channels != 1:
            raise ValueError(f"sequences are read one at a time, the encoder wants {self.vision.in_channels} channels")
        e, d, shared = self.vision.embedding, self.text.embedding, config.embedding
        i, j, k = self.vision.patch
        self.decoder = PatchDecoder(config.decoder, image_width=e, voxels=i * j * k)
        vocabulary, only_met = len(self.text.word_vectors), config.vocabulary == "met"
        self.word_head = WordHead(config.fusion.width, embedding=d, vocabulary=vocabulary, only_met=only_met)

        def pooled(width: int) -> nn.Sequential:
            return nn.Sequential(*[RunningStandardiser(width)] * config.standardise, nn.Linear(width, shared))

        self.heads = nn.ModuleDict(
            {
                "global_image": pooled(e),
                "global_text": pooled(d),
                "patches": nn.Linear(e, shared),
                "words": nn.Linear(d, shared),
            }
        )
        # Last, so that without a memory everything else starts as it does with one.
        self.fusion = MemoryFusion(config.fusion, image_width=e, text_width=d)

    def rate_factors(self) -> dict[str, float]:
        """Of the volumes' decoder."""
        return {} if self.config.decoder_rate == 1 else {"decoder.": self.config.decoder_rate}

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """The terms that are on. What needs a report is 0 where there is none; what compares studies, below two.

        Raises:
            ValueError: a volume is a single patch.
        """
        config, given = self.config, self.draw(batch)
        shares = (config.patch_share, config.word_share)
        passes = [shares] if config.masking == "paired" else [(shares[0], 0.0), (0.0, shares[1])]
        found: dict[str, list[Scalar]] = {name: [] for name in config.weights}
        for patch_share, word_share in passes:
            view = self.look(given, patch_share=patch_share, word_share=word_share)
            if "image" in found and patch_share > 0:
                found["image"].append(self.rebuild_volumes(given, view))
            if "report" in found and word_share > 0:
                found["report"].append(self.rebuild_reports(given, view))
            for name, term in self.align(given, view).items():
                found[name].append(term)
        return {name: config.weights[name] * torch.stack(terms).mean() for name, terms in found.items()}

    def align_volumes(self, batch: Batch) -> SequenceEmbeddings:
        """Unit vectors of each acquired sequence beside the reports', nothing hidden.

        Raises:
            NotImplementedError: it was trained without the global alignment.
        """
        self._must_have("global", "its volumes cannot be asked in words")
        features = self.encode(batch)
        aligned = features.new_zeros((*batch.acquired.shape, self.config.embedding))
        vectors = F.normalize(self.heads["global_image"](features[batch.acquired]), dim=-1)
        aligned[batch.acquired] = vectors.to(aligned.dtype)
        return aligned

    def align_texts(self, texts: list[str]) -> Float[Tensor, "t e"]:
        """Unit vectors of texts beside the volumes'.

        Raises:
            NotImplementedError: it was trained without the global alignment.
        """
        self._must_have("global", "its volumes cannot be asked in words")
        tokens = self._tokenise(texts)
        return F.normalize(self.heads["global_text"](pool_words(self.text(tokens), tokens.word)), dim=-1)

    def word_maps(self, batch: Batch, phrases: Sequence[str]) -> Float[Tensor, "b c q gi gj gk"]:
        """Where each phrase looks in each acquired sequence, nothing hidden: shares that sum to 1 over the patches.

        The attention of `local`, the mean over the phrase's words. Step n of an axis lies over the voxels of patch n.
        Zeros where a sequence was not acquired, and at patches of one value.

        Raises:
            ValueError: a phrase without a word.
            NotImplementedError: it was trained without the local alignment.
        """
        self._must_have("local", "its words point nowhere")
        tokens = self._tokenise(phrases)
        words, present = mean_by_word(self.text(tokens), tokens.word)
        if not bool(present.any(dim=1).all()):
            raise ValueError("a phrase has no word to look for; give at least one")
        volumes, grid = self.vision.filled(batch.volumes[batch.acquired][:, None])
        shares = attention_maps(
            self.heads["words"](words),
            self.heads["patches"](self.vision(volumes).tokens),
            present=present,
            imaged=imaged_patches(volumes, self.vision.patch),
            attention_temperature=self.config.attention_temperature,
        )
        maps = batch.volumes.new_zeros((*batch.acquired.shape, len(phrases), *grid))
        maps[batch.acquired] = shares.unflatten(2, grid).to(maps.dtype)
        return maps

    def fuse(self, batch: Batch, texts: Sequence[Sequence[str]]) -> Float[Tensor, "t f"]:
        """One vector a text: what it is after it read its study's acquired sequences by MA-CMF, nothing hidden.

        Raises:
            ValueError: as of `Recipe.fuse`.
        """
        asked = torch.tensor([bool(its) for its in texts], device=batch.acquired.device)
        if len(texts) != len(batch) or bool((asked & ~batch.acquired.any(dim=1)).any()):
            raise ValueError(f"texts of {len(texts)} studies for {len(batch)}, each of which must have a sequence")
        given = self.draw(replace(batch, reports=(None,) * len(batch)), sequences=len(batch.sequences))
        seen = self.vision(given.volumes).tokens
        patches = self.fusion.remember(given.join(seen))
        return fuse_texts(texts, patches, given.join(seen.new_ones(seen.shape[:2]).bool()), self.text, self.fusion)

    def draw(self, batch: Batch, *, sequences: int | None = None) -> Given:
        """Volumes and reports of a batch, before anything is hidden."""
        return draw_pairs(batch, self.vision, self.text, sequences=sequences or self.config.sequences_read)

    def look(self, given: Given, *, patch_share: float = 0.0, word_share: float = 0.0) -> View:
        """Hide shares of both sides and encode what is left."""
        return look(given, self.vision, self.text, patch_share=patch_share, word_share=word_share)

    def rebuild_volumes(self, given: Given, view: View) -> Scalar:
        """Mean square over the voxels of hidden patches, each patch normalised by itself; what fills up is left out."""
        hidden, patch = ~view.visible, self.vision.patch
        rebuilt = self.decoder(view.seen, view.visible, given.grid)[hidden].float()
        real = real_voxels(given.voxels, patch, given.grid).to(rebuilt.device)
        wanted = patch_targets(given.volumes, patch, real=real)[hidden]
        counted = real.expand(len(hidden), -1, -1)[hidden]
        return ((rebuilt - wanted).square() * counted).sum() / counted.sum().clamp(min=1)

    def rebuild_reports(self, given: Given, view: View) -> Scalar:
        """Cross-entropy of the hidden words of studies that have both sides."""
        rows = given.paired
        if not rows.any():
            return view.seen.sum() * 0.0 + nothing_of(self.fusion, self.word_head)
        if self.config.guide_report:
            outputs = self.fusion(view.states[rows], view.joined[rows], view.attended[rows])
        else:
            outputs = self.fusion.alone(view.states[rows])
        hidden, ids = view.hidden[rows], given.tokens.ids[rows]
        shown = ids[given.tokens.attended[rows]]
        told = self.word_head(outputs[hidden], ids[hidden], table=self.text.word_vectors, shown=shown)
        return hidden_token_loss(told.rows, told.words, table=told.table, bias=told.bias)

    def align(self, given: Given, view: View) -> dict[str, Scalar]:
        """`global` and `local`, those that are on, of all devices' studies with both sides; 0 for fewer than two."""
        terms = dict.fromkeys(self.config.weights.keys() & {"global", "local"}, view.seen.sum() * 0.0)
        if not terms:
            return terms
        rows, heads = given.paired & view.present.any(dim=1), self.heads
        key = gather_with_gradient(report_keys(given.tokens)[rows])
        if len(key) < 2:
            return terms
        same = key[:, None] == key
        if "global" in terms:
            volumes = gather_with_gradient(heads["global_image"](view.pooled[rows]))
            texts = gather_with_gradient(heads["global_text"](view.said[rows]))
            terms["global"] = info_nce(volumes, texts, temperature=self.config.temperature, positives=same)
        if "local" in terms:
            terms["local"] = word_contrast(
                gather_rows(heads["words"](view.words[rows])),
                gather_rows(heads["patches"](view.joined[rows])),
                present=gather_rows(view.present[rows]),
                imaged=gather_rows(view.imaged[rows]),
                positives=same,
                temperature=self.config.local_temperature,
                attention_temperature=self.config.attention_temperature,
                ways=self.config.local_ways,
            )
        return terms

    def _tokenise(self, texts: Sequence[str | None]) -> Tokens:
        return self.text.tokenise(texts).to(self.word_head.bias.device)

    def _must_have(self, term: str, else_: str) -> None:
        if term not in self.config.weights:
            raise NotImplementedError(f"this MPMA was trained without {term} alignment, so {else_}")


def tiny() -> MPMA.Config:
    """For a laptop: patches of 8 voxels at 4 to 5 mm, two layers of a text encoder; minutes on two cores.

    Less is hidden and temperatures are higher than in `paper`: some thousand studies do not teach the contrasts else.
    It hardly learned without trained text, standardised patches, a decoder that knows neighbours (results/mpma.md).
    """
    return MPMA.Config(
        vision=vit.tiny().but(stem=(16, 32), standardise=True, pooling="mean_max"),
        text=TrainedTextEncoder.Config(start="source", width=384, layers=2, heads=12, dropout=0.0, max_tokens=160),
        fusion=MemoryFusion.Config(width=96, heads=4, layers=1, slots=128, best=16),
        decoder=PatchDecoder.Config(mixing="neighbours", width=96, layers=2),
        patch_share=0.5,
        word_share=0.25,
        decoder_rate=4.0,
        vocabulary="met",
        embedding=64,
        standardise=True,
        temperature=0.2,
        local_temperature=0.2,
    )


def masked_only() -> MPMA.Config:
    """The control of `tiny` that rebuilds both sides without alignment, which is what the paper criticises."""
    return tiny().but(global_weight=0.0, local_weight=0.0)


def aligned_only() -> MPMA.Config:
    """The control of `tiny` that aligns, from the same masked inputs, and rebuilds nothing."""
    return tiny().but(image_weight=0.0, report_weight=0.0)


def one_sided() -> MPMA.Config:
    """The control of `tiny` whose other side is always whole; a step costs two passes."""
    return tiny().but(masking="one_sided")


def no_memory() -> MPMA.Config:
    """The control of `tiny` whose fusion has no memory."""
    return tiny().but(**{"fusion.slots": 0})


def paper() -> MPMA.Config:
    """Our reading in 3D, at the sizes of the paper's relatives."""
    return MPMA.Config()


def paper_2d() -> MPMA.Config:
    """Our reading on images of one voxel along k."""
    return paper().but(**{"vision.patch": (16, 16, 1)})


def tiny_2d() -> MPMA.Config:
    """`tiny` on images of one voxel along k; at 224 x 224 pixels as many patches as `paper_2d` has."""
    return tiny().but(**{"vision.patch": (16, 16, 1)})
