"""MG-3D (Ni 2024, arXiv 2412.05876): volumes and reports aligned and rebuilt at several grains.

Hides words of the report in one pass, 16^3 blocks of the volume in another. Encodes one sequence of a study by a
single-channel encoder and the report by a frozen text encoder; each side reads the other through a gate. Minimises,
each with a weight that switches it off at 0:

    mlm       hidden words, from the report after it read the whole volume
    sentence  8 numbers of each sentence, from the same pass, by their cosine
    mvm       hidden blocks, from the volume after it read the whole report; counted over hidden voxels only
    cml       fused against unfused: either side after it read the other, against itself before
    dcl       the whole fused volume against what the report's sentences read in it
    ssm       sentences alike in two studies should have read what is alike, unlike ones what is unlike
    itc       pooled volume against report. Not MG-3D's: it is what can be asked in words afterwards (`align_*`)

"Stated" is the abstract (the full text was not to be had); most is the released code, which does not run as it is.
| value                        | paper()              | released()         | marks |
|---|---|---|---|
| 0.15 of words, whole ones    | yes                  | yes                | stated: reports are rebuilt; code |
| 0.5 of blocks of 16^3        | yes                  | yes                | stated: volumes are rebuilt; code |
| hidden voxels hold           | a learned value      | a learned value    | inferred; the code drops tokens of a ViT |
| weights: mlm, mvm; others    | 1; 0.1               | 1; 0.1             | code |
| gate, what was read is       | softmax, added       | own, all there is  | inferred; code (gated_attention.py) |
| values that sentences read   | the volume's         | the sentence's own | stated: "visual semantics"; code |
| less what they read elsewhere| yes                  | no                 | inferred from "disentangled"; code |
| candidates of cml            | re-paired sides      | other studies      | inferred; code |
| likeness of sentences        | each encoded alone   | input embeddings   | inferred; code; head 384, 128, ours 128 |
| target of `sentence`         | a fixed projection   | a learned one      | inferred: a learned one collapses; code |
| fusion; ssm; temperature     | 2 x 768; 0.9, 0.6; 0.1 | the same         | code |
| itc with projections         | weight 1             | none               | inferred: no text projection is released |
| encoders                     | Swin-B; the packaged | the same           | code, RadBERT there: set recipe.text.path |
| AdamW, half a cosine, 1e-5   | yes                  | yes                | code: Adam, a line, 5e-5 in heads, fusion |

`tiny()` is ours. What swapped volumes do to each term is tested: with the released choices dcl, ssm and cml are met by
text alone, or by a pair that agrees with itself. Differs from both: of several sequences (MR) one a study and step is
read, drawn at random (inferred). Frozen text is cached by words **and** mask. Contrasts and ssm are gathered over
devices. What is read stays as it was through the layers. Without: class tokens (means instead), vectors of modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch, draw_volumes
from tomoglot.batches.mask import hidden_voxels, report_keys, token_mask
from tomoglot.encoders.decoder import BottleneckDecoder
from tomoglot.encoders.gated_attention import GatedFusion, Seen
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.standardise import RunningStandardiser
from tomoglot.encoders.text import FrozenTextEncoder, ReportFeatures, TextEncoder, mean_by_sentence
from tomoglot.encoders.text_trained import WordHead
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.objectives.contrastive import gather_with_gradient, info_nce
from tomoglot.objectives.language import hidden_token_loss, sentence_reconstruction
from tomoglot.objectives.local import fused_contrast, sentence_likeness
from tomoglot.objectives.local_words import gather_rows
from tomoglot.objectives.reconstruction import reconstruction_loss, voxel_weights
from tomoglot.recipes.recipe import OneEncoder, Recipe
from tomoglot.studies.report import report_body
from tomoglot.types import Scalar, SequenceEmbeddings

_TINY_RUN: dict[str, Any] = {
    "schedule.steps": 700,
    "schedule.learning_rate": 2e-3,
    "schedule.weight_decay": 0.1,
    "loader.batch_size": 16,
    "loader.sequences_per_study": 1,
    "loader.augment.jitter_voxels": 1,
    "loader.augment.scale": 0.05,
    "loader.augment.shift": 0.1,
}
_FULL_RUN: dict[str, Any] = {
    "schedule.steps": 300_000,  # code
    "schedule.warmup_steps": 10_000,  # code
    "schedule.learning_rate": 1e-5,  # code; 5e-5 for heads and fusion
    "schedule.weight_decay": 1e-8,  # code
    "loader.batch_size": 4,  # code: a device, and it has one or four
    "loader.crop_voxels": (128, 128, 96),  # code, to which it resizes the field
    "loader.sequences_per_study": 1,
}

# Presets of this file, with the run that each is meant for: a mark stands where a value is not ours.
PRESETS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("tiny", "global_only", "masked_only"), _TINY_RUN),
    **dict.fromkeys(("paper", "released"), _FULL_RUN),
}
TERMS = ("mlm", "sentence", "mvm", "itc", "cml", "dcl", "ssm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What contrasts compare: the studies with a report, of all devices. Equal `key` means equal words."""

    pooled: Float[Tensor, "n _v"]
    tokens: Float[Tensor, "n p d"]
    text: Float[Tensor, "n e"]
    sentences: Float[Tensor, "n s e"]
    present: Bool[Tensor, "n s"]
    alone: Float[Tensor, "n s e"]
    key: Int[Tensor, " n"]


class MG3D(OneEncoder):
    """Masked reports and volumes that help one another, and contrasts from the whole study down to its sentences."""

    class Config(Recipe.Config):
        """Every named component is a switch; a weight of 0 switches off the term of its name.

        Attributes:
            token_level: which map of the pyramid reads and is read; -1 is the coarsest.
            masks_per_report: take turns, so that the frozen encoder's answers come from its cache; None draws anew.
            vocabulary: among which a hidden word is ranked; "met" are words that reports have shown so far.
            guide_report: hidden words are rebuilt with the volume's help; else it is a language model.
            block_voxels: edge of a hidden block; blocks at the far ends are cut.
            guide_volume: hidden blocks are rebuilt with the report's help; else it is a masked autoencoder.
            sentence_target: fixed projections of sentences' embeddings; learned ones can all become the same.
            cml_candidates: "pairs": which of the volumes did this report read, which of the reports did this volume?
                "studies": both sides of a study, joined, before against after; for that none need read anything.
            likeness: of sentences as the encoder embeds each alone, or of the means of their input embeddings.
            alike: cosine of words from which features should be as alike; `unlike`: up to which they should be unlike.
            text_projection: learned map of texts for `itc`; else they stay as the frozen encoder has them.
            standardise: subtract running means before `itc`.
            temperature: of `cml` and `dcl`; `itc_temperature` is that of `itc`.
        """

        vision: SerializeAsAny[VisionEncoder.Config]
        text: TextEncoder.Config = TextEncoder.Config(max_tokens=250)
        fusion: GatedFusion.Config = GatedFusion.Config()
        token_level: int = Field(-1, le=-1)
        max_sentences: int = Field(32, ge=1)
        word_share: float = Field(0.15, gt=0, lt=1)
        masks_per_report: int | None = Field(None, ge=1)
        vocabulary: Literal["whole", "met"] = "whole"
        guide_report: bool = True
        block_voxels: int = Field(16, ge=1)
        hidden_share: float = Field(0.5, gt=0, lt=1)
        guide_volume: bool = True
        sentence_target: Literal["fixed", "learned"] = "fixed"
        cml_candidates: Literal["pairs", "studies"] = "pairs"
        likeness: Literal["encoded", "inputs"] = "encoded"
        alike: float = Field(0.9, ge=0, le=1)
        unlike: float = Field(0.6, ge=0, le=1)
        text_projection: bool = True
        standardise: bool = False
        temperature: float = Field(0.1, gt=0)
        itc_temperature: float = Field(0.1, gt=0)
        mlm_weight: float = Field(1.0, ge=0)
        sentence_weight: float = Field(0.1, ge=0)
        mvm_weight: float = Field(1.0, ge=0)
        itc_weight: float = Field(1.0, ge=0)
        cml_weight: float = Field(0.1, ge=0)
        dcl_weight: float = Field(0.1, ge=0)
        ssm_weight: float = Field(0.1, ge=0)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.vision.in_channels != 1 or not self.weights:
                raise ValueError("set vision.in_channels to 1, for one sequence at a time, and some weight above 0")
            return self

        @property
        def weights(self) -> dict[str, float]:
            """Weights of the terms that are on."""
            return {name: weight for name in TERMS if (weight := getattr(self, f"{name}_weight")) > 0}

        def build(self, sequences: tuple[str, ...]) -> MG3D:
            """Make the encoder, the fusion and the heads."""
            return MG3D(self, sequences)

    def __init__(self, config: Config, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.sequences, self.aligned = config, sequences, config.itc_weight > 0
        self.vision = config.vision.build()
        self.text: FrozenTextEncoder = config.text.build()
        widths, d, e = self.vision.widths, config.fusion.width, self.text.embedding
        self.level = len(widths) + config.token_level
        if self.level < 0:
            raise ValueError(f"token_level is {config.token_level}, this encoder has {len(widths)} maps")
        self.fusion = GatedFusion(config.fusion, image_width=widths[self.level], text_width=e)
        self.decoder = BottleneckDecoder((*widths[: self.level], d), self.vision.strides[: self.level + 1])
        self.fill = nn.Parameter(torch.zeros(()))
        vocabulary, only_met = len(self.text.word_vectors), config.vocabulary == "met"
        self.word_head = WordHead(d, embedding=e, vocabulary=vocabulary, only_met=only_met)

        def shared(width: int, *, linear: bool = True) -> nn.Sequential:
            parts: list[nn.Module] = [RunningStandardiser(width)] if config.standardise else []
            return nn.Sequential(*parts, *([nn.Linear(width, e)] if linear else []))

        target = nn.Linear(e, 8, bias=False)
        joined = 2 * d if config.cml_candidates == "studies" else d
        self.heads = nn.ModuleDict(
            {
                "sentence": nn.Linear(d, 8),
                "sentence_target": target,
                "itc_image": shared(self.vision.embedding),
                "itc_text": shared(e, linear=config.text_projection),
                "cml": nn.Sequential(nn.LayerNorm(joined), nn.Linear(joined, d, bias=False)),
                "dcl_whole": nn.Linear(d, d),
                "dcl_sentences": nn.Linear(d, d),
                # Linear: on a toy a head with a bend was met by text alone (0.016; 0.019 with volumes swapped).
                "ssm": nn.Linear(d, 128, bias=False),
            }
        )
        # Rows at right angles: cosines of projections follow, on average, those of the sentences.
        nn.init.orthogonal_(target.weight.requires_grad_(config.sentence_target == "learned"))

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """The terms that are on. What needs a report is 0 where there is none; what compares studies, below two.

        Raises:
            ValueError: blocks leave nothing of the crop to see.
        """
        config, weights, count = self.config, self.config.weights, len(batch)
        volumes, _, _ = draw_volumes(batch, 1)
        whole, hiding = weights.keys() != {"mvm"}, "mvm" in weights
        words = self.read_reports(batch.reports if whole or config.guide_volume else (None,) * count)
        views = [volumes] if whole else []
        if hiding:
            hidden = hidden_voxels(volumes, config.block_voxels, config.hidden_share, torch.default_generator)
            views.append(torch.where(hidden, self.fill, volumes))
        # One pass for both views: batch norm sees them together.
        features = self.vision(torch.cat(views))
        terms: dict[str, Scalar] = {}
        if whole:
            seen = self.fusion.see(features.pyramid[self.level][:count])
            terms |= self.rebuild_report(seen, words)
            terms |= self.contrasts(self.pair(features.pooled[:count], seen, words), seen.where)
        if hiding:
            rebuilt = self.rebuild_volumes(features.rows(slice(-count, None)), words, volumes)
            terms["mvm"] = reconstruction_loss(rebuilt, volumes, weights=voxel_weights(volumes, hidden))
        return {name: weight * terms[name] for name, weight in weights.items()}

    def align_volumes(self, batch: Batch) -> SequenceEmbeddings:
        """Unit vectors of each acquired sequence beside the reports'; `itc` is what brings them there.

        Raises:
            NotImplementedError: it was trained without `itc`.
        """
        features = self.encode(batch)
        aligned = features.new_zeros((*batch.acquired.shape, self.text.embedding))
        vectors = self._aligning("itc_image")(features[batch.acquired])
        aligned[batch.acquired] = F.normalize(vectors, dim=-1).to(aligned.dtype)
        return aligned

    def align_texts(self, texts: list[str]) -> Float[Tensor, "t e"]:
        """Unit vectors of texts beside the volumes', or a refusal as there."""
        return F.normalize(self._aligning("itc_text")(self.text.embed(texts)), dim=-1)

    def read_reports(self, reports: tuple[str | None, ...]) -> ReportFeatures:
        """Findings and impressions by the frozen encoder; not the technique, which names the sequences."""
        texts = [report_body(report) if report and report.strip() else None for report in reports]
        return self.text.read(texts, max_sentences=self.config.max_sentences, alone=self.config.likeness)

    def rebuild_report(self, seen: Seen, words: ReportFeatures) -> dict[str, Scalar]:
        """`mlm` and `sentence`, those that are on, from reports with hidden words that read their volumes."""
        config, tokens = self.config, words.tokens
        terms: dict[str, Scalar] = {}
        if not config.weights.keys() & {"mlm", "sentence"}:
            return terms
        hidden = token_mask(tokens, config.word_share, True, torch.default_generator, turns=config.masks_per_report)
        outputs = self.fusion.text_in(self.text.states(tokens, hidden))
        if config.guide_report:
            outputs = self.fusion.text_reads(outputs, seen.placed)
        if "mlm" in config.weights:
            shown = tokens.ids[tokens.attended]
            told = self.word_head(outputs[hidden], tokens.ids[hidden], table=self.text.word_vectors, shown=shown)
            terms["mlm"] = hidden_token_loss(told.rows, told.words, table=told.table, bias=told.bias)
        if "sentence" in config.weights:
            means, present = mean_by_sentence(outputs, tokens.sentence, words.present.shape[1])
            true = self.heads["sentence_target"](words.alone)
            terms["sentence"] = sentence_reconstruction(self.heads["sentence"](means), true, present)
        return terms

    def rebuild_volumes(
        self, features: VisionFeatures, words: ReportFeatures, volumes: Float[Tensor, "b 1 i j k"]
    ) -> Float[Tensor, "b 1 i j k"]:
        """Volumes from the map of their visible blocks, after it read the report."""
        map_, (i, j, k) = features.pyramid[self.level], volumes.shape[2:]
        seen = self.fusion.see(map_)
        tokens = seen.tokens
        if self.config.guide_volume:
            tokens = self.fusion.image_reads(seen.placed, self.fusion.text_in(words.states), words.tokens.attended)
        pyramid = (*features.pyramid[: self.level], tokens.transpose(1, 2).unflatten(2, tuple(map_.shape[2:])))
        return self.decoder(VisionFeatures(pyramid=pyramid, tokens=tokens, pooled=tokens.mean(dim=1)), (i, j, k))

    def pair(self, pooled: Float[Tensor, "b _v"], seen: Seen, words: ReportFeatures) -> Pairs:
        """The studies that have a report, gathered over devices, so that each computes the whole of a contrast."""
        said = words.present.any(dim=1)
        return Pairs(
            pooled=gather_with_gradient(pooled[said]),
            tokens=gather_with_gradient(seen.tokens[said]),
            text=gather_with_gradient(words.pooled[said]),
            sentences=gather_rows(words.sentences[said]),
            present=gather_rows(words.present[said]),
            alone=gather_rows(words.alone[said]),
            key=gather_with_gradient(report_keys(words.tokens)[said]),
        )

    def contrasts(self, pairs: Pairs, where: Float[Tensor, "1 p d"]) -> dict[str, Scalar]:
        """`itc`, `cml`, `dcl` and `ssm`, those that are on; exactly 0 for fewer than two pairs."""
        config, heads = self.config, self.heads
        terms = dict.fromkeys(config.weights.keys() & {"itc", "cml", "dcl", "ssm"}, pairs.tokens.sum() * 0.0)
        if len(pairs.key) < 2:
            return terms
        seen, asked = Seen(pairs.tokens, where), self.fusion.text_in(pairs.sentences)
        same = pairs.key[:, None] == pairs.key
        if "itc" in terms:
            volumes, texts = heads["itc_image"](pairs.pooled), heads["itc_text"](pairs.text)
            terms["itc"] = info_nce(volumes, texts, temperature=config.itc_temperature, positives=same)
        if "cml" in terms:
            terms["cml"] = self._fused_against_unfused(pairs, seen, asked, same)
        if "dcl" in terms or "ssm" in terms:
            read = self.fusion.read_sentences(asked, seen)
            whole = self.fusion.image_reads(seen.whole[:, None], asked, pairs.present)[:, 0]
            gathered = (read * pairs.present[..., None]).sum(dim=1) / pairs.present.sum(dim=1, keepdim=True)
        if "dcl" in terms:
            whole, gathered = heads["dcl_whole"](whole), heads["dcl_sentences"](gathered)
            terms["dcl"] = info_nce(whole, gathered, temperature=config.temperature)
        if "ssm" in terms:
            gates = {"alike": config.alike, "unlike": config.unlike}
            terms["ssm"] = sentence_likeness(heads["ssm"](read), pairs.alone, pairs.present, **gates)
        return terms

    def _fused_against_unfused(self, pairs: Pairs, seen: Seen, asked: Tensor, same: Tensor) -> Scalar:
        head, temperature = self.heads["cml"], self.config.temperature
        text, image = self.fusion.text_in(pairs.text), seen.whole
        if self.config.cml_candidates == "studies":
            read = self.fusion.text_reads(text[:, None], seen.placed)[:, 0]
            told = self.fusion.image_reads(image[:, None], asked, pairs.present)[:, 0]
            fused, plain = head(torch.cat([read, told], dim=1)), head(torch.cat([text, image], dim=1))
            return info_nce(fused, plain, temperature=temperature)
        # Every report reads every volume, and every volume every report: (read, reader, d).
        read = self.fusion.text_reads(text.expand(len(text), -1, -1), seen.placed)
        told = self.fusion.image_reads(image.expand(len(image), -1, -1), asked, pairs.present)
        of_text = fused_contrast(head(read), head(text), same, temperature=temperature)
        return (of_text + fused_contrast(head(told), head(image), same, temperature=temperature)) / 2

    def _aligning(self, head: str) -> nn.Module:
        if self.config.itc_weight == 0:
            raise NotImplementedError("this MG-3D was trained without itc, so its volumes cannot be asked in words")
        return self.heads[head]


def tiny() -> MG3D.Config:
    """For a laptop: a small convolution encoder whose map of stride 8 the words read; minutes on two cores."""
    return MG3D.Config(
        vision=PlainConv.Config(widths=(8, 16, 32, 64), blocks=(0, 0, 0, 0), pooling="every_stage"),
        fusion=GatedFusion.Config(width=96, layers=1),
        token_level=-2,
        masks_per_report=2,
        vocabulary="met",
        text_projection=False,
        standardise=True,
        itc_temperature=0.2,
    )


def global_only() -> MG3D.Config:
    """The control of `tiny`: volume against report and nothing else, which is CLIP with the same encoder and run."""
    return tiny().but(**{f"{name}_weight": 0.0 for name in TERMS if name != "itc"})


def masked_only() -> MG3D.Config:
    """The control of `tiny` that never sees a report: a masked autoencoder with the same encoder and run."""
    return tiny().but(guide_volume=False, **{f"{name}_weight": 0.0 for name in TERMS if name != "mvm"})


def paper() -> MG3D.Config:
    """What the abstract states; what it does not state is the released code's, or ours where that is text-only."""
    return MG3D.Config(vision=VisionEncoder.Config.named("swin:base"))


def released() -> MG3D.Config:
    """As the released code means to train; `but(itc_weight=1.0)` makes it answer questions."""
    return paper().but(
        fusion=GatedFusion.Config(gate="own", residual=False, values="sentence", apart=False),
        text=TextEncoder.Config(pooling="cls", max_tokens=250),
        sentence_target="learned",
        cml_candidates="studies",
        likeness="inputs",
        itc_weight=0.0,
    )
