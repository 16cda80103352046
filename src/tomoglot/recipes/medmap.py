"""MedMAP (2026, arXiv 2602.23652), stage 1: modality-aware encoders aligned with one frozen text encoder.

Hides nothing. Encodes each acquired sequence by the encoder of that sequence, and the report by a text encoder that is
shared by all sequences and never trained. Minimises an asymmetric contrast of each volume with its study's report, in
which every volume whose study carries the same words is a positive.

The paper has three pages and its released code is another project, so most values are inferred:

| value                                   | mark     | source or reason |
|---|---|---|
| one vision encoder per sequence         | stated   | method; here ``bank="separate"`` |
| one shared, frozen text encoder         | stated   | method |
| projection of the text output           | stated   | named for stage 2; here a switch, `text_projection` |
| asymmetric contrast                     | stated   | no formula is given; three readings behind `contrast` |
| multi-positive targets                  | inferred | one report covers all sequences of a study |
| weight 0.75 of volume to report         | inferred | the side that is trained counts more |
| temperature 0.07, learned               | inferred | the usual start; the code's scale lacks its exponential |
| SwinUNETR's encoder, width 48           | code     | both branches; `swin:base`, the last map at 1/32 |
| crops of 96^3                           | code     | branch A; Swin_CLIP takes 128^3 |
| projection width 768                    | code     | Swin_CLIP |
| AdamW 5e-5, decay 0.1, cosine           | code     | train_CLIP |
| `bank="tied"` and `"adapter"`           | inferred | switches of ours: fewer parameters where studies are few |
| sentences drawn from the report         | inferred | `sentences_kept` below 1 is an augmentation of ours |
| `study_weight`                          | inferred | a term on the mean over sequences, so that subsets can be asked |
| texts of all processes are candidates   | code     | Swin_CLIP gathers; here `gather` |
| `unknown_sequences="shared"`            | inferred | an adapter that sees a tenth of the volumes of every sequence |

Stage 2, fine-tuning for abnormality detection, is `tasks/heads/detector.py`.

Differs from the released code: temperatures are exponentiated, text is not trained, sequences of one study are read
together (the code zips two shuffled loaders).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.encoders.standardise import RunningStandardiser
from tomoglot.encoders.text import FrozenTextEncoder, TextEncoder
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.objectives.contrastive import gather_with_gradient, info_nce
from tomoglot.recipes.recipe import Recipe, nothing_of
from tomoglot.studies.report import report_body
from tomoglot.types import Scalar, SequenceEmbeddings

# Presets of this file, with the run that each is meant for: a mark stands where a value is not ours.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "schedule.steps": 700,
        "schedule.warmup_steps": 50,
        "schedule.learning_rate": 4e-3,
        "schedule.weight_decay": 0.1,
        "loader.batch_size": 24,
        "loader.workers": 2,
        "loader.sequences_per_study": 3,
        "loader.augment.jitter_voxels": 1,
        "loader.augment.scale": 0.05,
        "loader.augment.shift": 0.1,
    },
    "paper": {
        "schedule.steps": 46_000,  # code: 100 epochs at batch 16 over 7,392 pairs of a volume and a report
        "schedule.warmup_steps": 1_380,  # code: 3 % of the run
        "schedule.learning_rate": 5e-5,  # code: train_CLIP
        "schedule.weight_decay": 0.1,  # code: train_CLIP
        "loader.batch_size": 16,  # code: shipped script
        "loader.sequences_per_study": 1,  # code: a step reads 16 pairs
        "loader.crop_voxels": (96, 96, 96),  # code
    },
}


# The adapter of sequences that have none of their own, and the share of the volumes that trains it.
ANY = "any_sequence"
ANY_SHARE = 0.1


class SequenceAdapter(nn.Module):
    """Residual bottleneck of one sequence over the features of a shared encoder (Houlsby 2019); starts as identity."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        """Add what is peculiar to the sequence."""
        return features + self.up(F.gelu(self.down(features)))


class MedMAP(Recipe):
    """An encoder bank over sequences, aligned with frozen report embeddings."""

    class Config(Recipe.Config):
        """Every inferred choice is a switch."""

        vision: SerializeAsAny[VisionEncoder.Config]
        text: TextEncoder.Config = TextEncoder.Config()
        bank: Literal["separate", "tied", "adapter"] = "separate"
        adapter_width: int = Field(32, ge=1)
        unknown_sequences: Literal["refuse", "shared"] = "refuse"
        embedding: int = Field(768, ge=2)
        contrast: Literal["image_to_text", "weighted", "symmetric"] = "weighted"
        image_to_text_weight: float = Field(0.75, ge=0, le=1)
        multi_positive: bool = True
        temperature: float = Field(0.07, gt=0)
        learn_temperature: bool = True
        standardise: bool = True
        sentences_kept: float = Field(1.0, gt=0, le=1)
        text_projection: bool = True
        sequence_weight: float = Field(1.0, ge=0)
        study_weight: float = Field(0.0, ge=0)
        gather: bool = True

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.sequence_weight == 0 and self.study_weight == 0:
                raise ValueError("sequence_weight and study_weight are both 0: nothing would be minimised")
            if self.unknown_sequences == "shared" and self.bank != "adapter":
                raise ValueError(
                    f"unknown_sequences 'shared' is an adapter: it needs bank='adapter', not {self.bank!r} (a tied "
                    "bank takes any sequence as it is)"
                )
            return self

        def build(self, sequences: tuple[str, ...]) -> MedMAP:
            """Make the encoder bank for these sequences."""
            return MedMAP(self, sequences)

    def __init__(self, config: Config, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.sequences = config, sequences
        # Separate: an encoder a sequence. Otherwise one encoder, under the key of the whole bank.
        keys = sequences if config.bank == "separate" else ("shared",)
        built = {key: config.vision.build() for key in keys}
        self.encoders = nn.ModuleDict(built)
        self.width = built[keys[0]].embedding
        hidden = config.adapter_width
        owners = (*sequences, *((ANY,) if config.unknown_sequences == "shared" else ()))
        self.adapters = nn.ModuleDict(
            {name: SequenceAdapter(self.width, hidden) for name in owners} if config.bank == "adapter" else {}
        )
        self.text: FrozenTextEncoder = config.text.build()
        # Width shared by volumes and texts.
        self.embedding = config.embedding if config.text_projection else self.text.embedding
        self.volume_projections = nn.ModuleDict({key: self._head(self.width, linear=True) for key in keys})
        self.text_projection = self._head(self.text.embedding, linear=config.text_projection)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def _head(self, width: int, *, linear: bool) -> nn.Sequential:
        """Standardise features, when asked, and bring them to the shared width, unless they are left as they are."""
        parts: list[nn.Module] = [RunningStandardiser(width)] if self.config.standardise else []
        return nn.Sequential(*parts, *([nn.Linear(width, self.embedding)] if linear else []))

    @property
    def temperature(self) -> Scalar:
        """Temperature of the contrast, kept at or above 0.01 (Radford 2021, sec. 2.5).

        Below it the gradient still reaches the parameter, which would else never come back.
        """
        free = self.log_temperature.exp()
        return free + (free.clamp(min=0.01) - free).detach()

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """`sequence`: each volume against the reports; `study`: the mean over sequences against the reports.

        Raises:
            ValueError: fewer than two studies have a report, of the batch, or with `gather` of all devices' batches.
        """
        reported = torch.tensor([bool(report) for report in batch.reports], device=batch.acquired.device)
        compared = gather_with_gradient(reported) if self.config.gather else reported
        if int(compared.sum()) < 2:
            raise ValueError("contrast needs two or more studies with a report in a batch; raise loader.batch_size")
        asked = batch.acquired & reported[:, None]
        volumes = self._project(batch, asked)
        if not asked.any():
            volumes = volumes + nothing_of(self)
        texts = self._embed_reports([batch.reports[row] or "" for row in reported.nonzero().flatten().tolist()])
        words = [batch.reports[row] for row in reported.nonzero().flatten().tolist()]
        terms: dict[str, Scalar] = {}
        if self.config.sequence_weight > 0:
            study_of_volume = asked[reported].nonzero()[:, 0]
            of_volume = F.normalize(volumes[asked], dim=-1)
            owners = [words[row] for row in study_of_volume.tolist()]
            terms["sequence"] = self.config.sequence_weight * self._contrast(
                of_volume, texts[study_of_volume], self._positives(owners, study_of_volume, device=texts.device)
            )
        if self.config.study_weight > 0:
            pooled = F.normalize(F.normalize(volumes, dim=-1).sum(dim=1)[reported], dim=-1)
            own = torch.arange(len(words), device=texts.device)
            terms["study"] = self.config.study_weight * self._contrast(
                pooled, texts, self._positives(words, own, device=texts.device)
            )
        return terms

    def readable(self, stored: Sequence[str]) -> tuple[str, ...]:
        """Those it was built for; with `unknown_sequences="shared"` all others that are stored, too."""
        others = (name for name in stored if name not in self.sequences)
        return (*self.sequences, *(others if self.config.unknown_sequences == "shared" else ()))

    def encode(self, batch: Batch) -> SequenceEmbeddings:
        """Pooled features of each acquired sequence."""
        return self._encode(batch, batch.acquired)

    def features(self, batch: Batch) -> dict[str, VisionFeatures]:
        """What each sequence's encoder makes of it; its adapter changes the pooled vector, and not the maps."""
        self._columns(batch)
        found = super().features(batch)
        if not self.adapters:
            return found
        return {name: replace(features, pooled=self._adapt(features.pooled, name)) for name, features in found.items()}

    def backbone(self, sequence: str | None = None) -> VisionEncoder:
        """The encoder that all sequences share, or with an encoder a sequence, that of `sequence`.

        Raises:
            ValueError: there is an encoder a sequence, and `sequence` names none of them.
        """
        key = sequence if self.config.bank == "separate" else "shared"
        if key is None or key not in self.encoders:
            raise ValueError(
                f"there is an encoder a sequence, and none for {sequence!r}; choose of {', '.join(self.sequences)}"
            )
        encoder = self.encoders[key]
        assert isinstance(encoder, VisionEncoder)
        return encoder

    def align_volumes(self, batch: Batch) -> SequenceEmbeddings:
        """Unit vectors of each acquired sequence beside the reports'."""
        projected = self._project(batch, batch.acquired)
        return F.normalize(projected, dim=-1) * batch.acquired[..., None]

    def align_texts(self, texts: list[str]) -> Float[Tensor, "t e"]:
        """Unit vectors of texts beside the volumes'."""
        device = self.log_temperature.device
        return F.normalize(self.text_projection(self.text.embed(texts).to(device)), dim=-1)

    def _encode(self, batch: Batch, asked: Bool[Tensor, "b c"]) -> SequenceEmbeddings:
        columns = self._columns(batch)
        features = batch.volumes.new_zeros((*asked.shape, self.width))
        if self.config.bank == "separate":
            for name, column in columns.items():
                rows = asked[:, column]
                if rows.any():
                    pooled = self.encoders[name](batch.volumes[rows, column][:, None]).pooled
                    features[rows, column] = pooled.to(features.dtype)
            return features
        if not asked.any():
            return features
        features[asked] = self.encoders["shared"](batch.volumes[asked][:, None]).pooled.to(features.dtype)
        if not self.adapters:
            return features
        adapted = [self._adapt(features[:, column], name) for name, column in columns.items()]
        return torch.stack(adapted, dim=1) * asked[..., None]

    def _adapt(self, pooled: Float[Tensor, "n e"], sequence: str) -> Float[Tensor, "n e"]:
        """By the sequence's own adapter; by the one for any sequence, if there is one, where it has none.

        While training, the latter takes a tenth of the volumes of every sequence, so that it has seen all of them.
        """
        if sequence not in self.adapters:
            return self.adapters[ANY](pooled)
        own = self.adapters[sequence](pooled)
        if not self.training or ANY not in self.adapters:
            return own
        drawn = torch.rand(len(pooled), 1, device=pooled.device) < ANY_SHARE
        return torch.where(drawn, self.adapters[ANY](pooled), own)

    def _columns(self, batch: Batch) -> dict[str, int]:
        """Channel of each sequence; a sequence that has no encoder is refused."""
        unknown = [name for name in batch.sequences if name not in self.sequences]
        if unknown and self.config.bank != "tied" and ANY not in self.adapters:
            raise ValueError(
                f"no encoder for {', '.join(unknown)}; this model knows {', '.join(self.sequences)}. "
                "A model with bank='tied' takes any sequence, so does bank='adapter' with unknown_sequences='shared'"
            )
        return {name: column for column, name in enumerate(batch.sequences)}

    def _project(self, batch: Batch, asked: Bool[Tensor, "b c"]) -> SequenceEmbeddings:
        """Encode what is asked and bring it to the width shared with text."""
        features, columns = self._encode(batch, asked), self._columns(batch)
        if self.config.bank != "separate":
            projected = features.new_zeros((*asked.shape, self.embedding))
            projected[asked] = self.volume_projections["shared"](features[asked]).to(projected.dtype)
            return projected
        parts = features.new_zeros((*asked.shape, self.embedding))
        for name, column in columns.items():
            rows = asked[:, column]
            if rows.any():
                parts[rows, column] = self.volume_projections[name](features[rows, column]).to(parts.dtype)
        return parts

    def _embed_reports(self, reports: list[str]) -> Float[Tensor, "n e"]:
        """Report embeddings in the shared space; while training, a random part of the sentences when asked."""
        device = self.log_temperature.device
        bodies = [report_body(report) for report in reports]
        if self.config.sentences_kept >= 1 or not self.training:
            return F.normalize(self.text_projection(self.text.embed(bodies).to(device)), dim=-1)
        rows = []
        for body in bodies:
            sentences = self.text.sentences_of(body)
            drawn = torch.rand(len(sentences)).argsort()[: math.ceil(self.config.sentences_kept * len(sentences))]
            rows.append(self.text.embed([sentences[int(i)] for i in drawn]).to(device).mean(dim=0))
        drawn_from = torch.stack(rows) if rows else self.text.embed([]).to(device)
        return F.normalize(self.text_projection(drawn_from), dim=-1)

    def _positives(self, words: list[str | None], owner: Tensor, *, device: torch.device) -> Bool[Tensor, "n m"]:
        """Which pairs of volume and report agree: those of one study, and those of studies with the same words.

        Rows are the volumes of this process, columns the reports of all processes, where they are gathered.
        """
        if self.config.multi_positive:
            numbers = [int.from_bytes(hashlib.sha256(str(word).encode()).digest()[:7]) for word in words]
        else:
            numbers = list(range(len(words)))
        distributed = self.config.gather and torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        # What tells studies apart on one process does not across processes: the rank does.
        apart = torch.tensor([rank, 0 if self.config.multi_positive else rank], device=device)
        mine = torch.stack([owner.to(device), torch.tensor(numbers, dtype=torch.int64, device=device)], dim=1)
        keys = torch.stack([apart.expand(len(words), 2), mine], dim=2)
        every = gather_with_gradient(keys) if self.config.gather else keys
        same = (keys[:, None] == every[None]).all(dim=-1)
        return same.any(dim=-1) if self.config.multi_positive else same[..., 1]

    def _contrast(self, volumes: Tensor, texts: Tensor, positives: Bool[Tensor, "n m"]) -> Scalar:
        weight = {"image_to_text": 1.0, "symmetric": 0.5}.get(self.config.contrast, self.config.image_to_text_weight)
        return info_nce(
            volumes,
            texts,
            temperature=self.temperature,
            weight=weight,
            positives=positives,
            gather=self.config.gather,
        )


def tiny() -> MedMAP.Config:
    """For a laptop: one small convolution encoder, tied over sequences with an adapter each; minutes on two cores.

    What decided, on simulated studies of another seed (results/tuning.md): features of every stage, since a lesion is
    smaller than a step of the coarsest map; the text space left as the frozen encoder has it, since a projection
    learned from a thousand reports forgets the words it was not asked for; a term on each study's mean over its
    sequences; and a temperature that cannot fall until reports are learnt by heart.
    """
    return MedMAP.Config(
        vision=VisionEncoder.Config.named("plain_conv:tiny").but(
            widths=(8, 16, 32, 64), blocks=(0, 0, 0, 0), pooling="every_stage"
        ),
        text=TextEncoder.Config(pooling="mean"),
        bank="adapter",
        text_projection=False,
        temperature=0.2,
        learn_temperature=False,
        study_weight=1.0,
    )


def paper() -> MedMAP.Config:
    """As the paper states it, an encoder a sequence; sizes that it does not state are the released code's."""
    return MedMAP.Config(vision=VisionEncoder.Config.named("swin:base"), bank="separate", embedding=768)
