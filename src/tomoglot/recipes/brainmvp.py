"""BrainMVP (Rui 2025, CVPR, arXiv 2410.10604): rebuild a sequence whose hidden blocks another volume fills.

Hides 8^3 blocks of one sequence of a study. Fills them in one view from another sequence of the same study (CMR,
cross-modal reconstruction) and in the other from a learned template of the hidden sequence (MD, template
distillation). Encodes both views by one single-channel encoder. Minimises the error of both reconstructions, by a
decoder without skips, and late in the run a contrast that brings the two encodings of a crop together (MCL).

| value                        | paper()                | released()         | marks |
|---|---|---|---|
| hidden share                 | 0.875                  | 0.8                | stated; shipped script |
| blocks of 8^3, one mask a view | yes                  | yes                | inferred; code |
| weights CMR : MD : MCL       | 1 : 1 : 1              | 1 : 10 : 1         | stated, sec. 3; code |
| error, over the whole crop   | l2 norm                | mean square        | stated, a formula without a mask; code |
| template in both views       | never                  | first fifth        | stated; code, epochs 0-300 of 1,500 |
| contrast from                | two thirds of the run  | two thirds         | stated, epoch 1,000 of 1,500; script |
| temperature                  | 1.0                    | 1.0                | inferred, not found in the paper; code |
| what is contrasted           | flattened coarsest map | the same, no head  | inferred; code |
| targets a study and step     | every sequence         | one                | stated, their mean; code |
| templates                    | as they are            | min-max at use     | inferred; code |
| decoder without skips        | linear                 | linear             | stated, linear inferred; code |
| crop 96^3 at 1 mm            | yes                    | yes                | inferred; code |
| AdamW, 3e-4, cosine          | decay 1e-5             | decay 1e-5         | stated, decay inferred; code |

`tiny()` is ours: error over hidden voxels only, a nonlinear decoder, temperature 0.1 on pooled features, one target a
study and step, templates in both views for the first three tenths of the run.

Differs from the released code: templates are read by world position, not by array offset, and survive a resume; a
study with one sequence falls back to its template (the code stops); the contrast is gathered over devices; the
partner is drawn from all sequences of the study, not from four slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, distributed, nn

from tomoglot.batches.batch import Batch
from tomoglot.batches.mask import hidden_voxels
from tomoglot.encoders.decoder import BottleneckDecoder
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.template import TemplateBank
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.objectives.contrastive import gather_with_gradient, info_nce
from tomoglot.objectives.reconstruction import reconstruction_loss, voxel_weights
from tomoglot.recipes.recipe import OneEncoder, Recipe
from tomoglot.studies.nifti import write_nifti
from tomoglot.types import Scalar, Volumes

_TINY_RUN: dict[str, Any] = {
    "schedule.steps": 600,
    "schedule.warmup_steps": 50,
    "schedule.learning_rate": 1e-3,
    "schedule.weight_decay": 0.05,
    "loader.batch_size": 16,
    "loader.workers": 2,
}
_FULL_RUN: dict[str, Any] = {
    "schedule.steps": 234_000,  # stated: 1,500 epochs of 3,755 studies; 24 studies a step
    "schedule.warmup_steps": 0,  # code: its warm-up is never reached
    "schedule.learning_rate": 3e-4,  # stated
    "schedule.weight_decay": 1e-5,  # code
    "schedule.betas": (0.9, 0.999),  # code: torch's default
    "schedule.clip_norm": None,  # code: none
    "loader.crop_voxels": (96, 96, 96),  # code
    "loader.batch_size": 3,  # stated
    # Stated: 8 devices; code: 4 devices and 2 batches a step. On one device the negatives are the batch's own 3.
    "schedule.batches_per_step": 8,
}

TOO_FEW = "the contrast needs two or more studies in a batch; raise loader.batch_size, or set recipe.mcl_weight=0"
# Presets of this file, with the run that each is meant for: a mark stands where a value is not ours.
PRESETS: dict[str, dict[str, Any]] = {"tiny": _TINY_RUN, "mae": _TINY_RUN, "paper": _FULL_RUN, "released": _FULL_RUN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Volumes to rebuild, n of them: which study and channel each is, and the order in which its study drew it."""

    volumes: Float[Tensor, "n 1 i j k"]
    study: Int[Tensor, " n"]
    channel: Int[Tensor, " n"]
    turn: Int[Tensor, " n"]
    sequences: tuple[str, ...]
    affine: Float[Tensor, "n 4 4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Targets with their hidden blocks filled, and where that was."""

    filled: Float[Tensor, "n 1 i j k"]
    hidden: Bool[Tensor, "n 1 i j k"]


class BrainMVP(OneEncoder):
    """Cross-sequence reconstruction, template distillation and their contrast around one single-channel encoder."""

    class Config(Recipe.Config):
        """Every difference between the paper, the released code and us is a switch.

        Attributes:
            templates: the grid of the template bank, in the atlas of the studies.
            linear_decoder: nothing but transposed convolutions, as released.
            block_voxels: edge of a block. A crop need not be a multiple: blocks at the far ends are then cut.
            hidden_share: of the blocks.
            sequences_per_study: targets of each study and step, drawn at random; None takes every sequence.
            filler: what fills the CMR view: another sequence, or zeros, which is plain masked autoencoding.
            cmr_weight: of the view filled from another sequence.
            md_weight: of the view filled from the template.
            mcl_weight: of the contrast between the two views.
            template_until: share of the run in which the CMR view is filled from the template as well.
            contrast_from: share of the run after which the contrast counts; templates are noise before.
            temperature: of the contrast.
            contrast_on: the encoder's pooled vector, or its whole coarsest map, so that places matter.
            projection: width of a two-layer head before the contrast; None contrasts the features themselves.
            error: mean square, or the root of the sum of squares of each volume.
            counted: hidden voxels only, or the whole crop.
            background_weight: weight of voxels whose true value is exactly zero.
        """

        vision: SerializeAsAny[VisionEncoder.Config]
        templates: TemplateBank.Config = TemplateBank.Config()
        linear_decoder: bool = False
        block_voxels: int = Field(8, ge=1)
        hidden_share: float = Field(0.875, gt=0, lt=1)
        sequences_per_study: int | None = Field(1, ge=1)
        filler: Literal["other", "zero"] = "other"
        cmr_weight: float = Field(1.0, ge=0)
        md_weight: float = Field(1.0, ge=0)
        mcl_weight: float = Field(1.0, ge=0)
        template_until: float = Field(0.0, ge=0, le=1)
        contrast_from: float = Field(2 / 3, ge=0, le=1)
        temperature: float = Field(0.1, gt=0)
        contrast_on: Literal["pooled", "flattened"] = "pooled"
        projection: int | None = Field(None, ge=2)
        error: Literal["mse", "l2"] = "mse"
        counted: Literal["hidden", "crop"] = "hidden"
        background_weight: float = Field(1.0, ge=0)

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.vision.in_channels != 1:
                raise ValueError(
                    f"BrainMVP reads a sequence at a time: vision.in_channels is {self.vision.in_channels}"
                )
            if self.cmr_weight == 0 and self.md_weight == 0 and (self.mcl_weight == 0 or self.contrast_from > 0):
                raise ValueError("cmr_weight and md_weight are both 0: nothing would be minimised from the start")
            if self.filler == "zero" and self.template_until > 0:
                raise ValueError("filler 'zero' never reads a template: set template_until to 0")
            if self.projection is not None and self.contrast_on == "flattened":
                raise ValueError("projection needs contrast_on='pooled': the flattened map's width depends on the crop")
            return self

        def build(self, sequences: tuple[str, ...]) -> BrainMVP:
            """Make the encoder, the decoder and a template for each of these sequences."""
            return BrainMVP(self, sequences)

    def __init__(self, config: Config, sequences: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.sequences = config, sequences
        self.vision = config.vision.build()
        self.decoder = BottleneckDecoder(self.vision.widths, self.vision.strides, linear=config.linear_decoder)
        self.width = self.vision.embedding
        wanted = config.filler == "other" or config.md_weight > 0 or config.mcl_weight > 0
        self.bank = TemplateBank(config.templates, sequences) if wanted else None
        self.head: nn.Module = nn.Identity()
        if config.projection is not None and config.mcl_weight > 0:
            self.head = nn.Sequential(
                nn.Linear(self.width, self.width), nn.SiLU(), nn.Linear(self.width, config.projection)
            )

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """`cmr` (or `mae`, where zeros fill) and `md`: errors of the two views; `mcl`: their contrast.

        A term whose weight is 0, or that is not on yet, is left out, and what only it needs is not computed.

        Raises:
            ValueError: the contrast is on, now or later, and no two studies can be compared; an unknown sequence; crops
                that lie outside the template grid.
        """
        config = self.config
        if config.mcl_weight > 0 and config.contrast_from < 1 and len(batch) * _devices() < 2:
            # At the first step, and not after the part of the run that has no contrast.
            raise ValueError(TOO_FEW)
        targets = self.draw_targets(batch)
        contrast = config.mcl_weight > 0 and progress >= config.contrast_from
        views = self.make_views(batch, targets, progress=progress, both=contrast)
        # One pass for both views: batch norm sees them together (code).
        features = self.vision(torch.cat([view.filled for view in views.values()]))
        weights, terms = {"cmr": config.cmr_weight, "md": config.md_weight}, {}
        count = len(targets.study)
        parts = {name: features.rows(slice(at * count, (at + 1) * count)) for at, name in enumerate(views)}
        for name, view in views.items():
            if weights[name] > 0:
                title = "mae" if name == "cmr" and config.filler == "zero" else name
                terms[title] = weights[name] * self._error(parts[name], targets, view)
        if contrast:
            terms["mcl"] = config.mcl_weight * self._contrast(parts["cmr"], parts["md"], targets.turn)
        return terms

    def templates(self, batch: Batch) -> Volumes:
        """Each sequence's template where each crop lies, for every channel of the batch, acquired or not."""
        if self.bank is None:
            return super().templates(batch)
        studies, (i, j, k) = len(batch.volumes), batch.volumes.shape[2:]
        names = [name for _ in range(studies) for name in batch.sequences]
        affine = batch.affine.repeat_interleave(len(batch.sequences), dim=0)
        return self.bank.read(names, affine, (i, j, k)).view(batch.volumes.shape)

    def artefacts(self, folder: Path, *, simulated: bool) -> None:
        """Write each template as ``templates/<sequence>.nii.gz``, as it fills blocks."""
        if self.bank is None:
            return
        (folder / "templates").mkdir(parents=True, exist_ok=True)
        for name, volume in self.bank.volumes().items():
            words = f"BrainMVP template of {name}" + (", learned from simulated data" if simulated else "")
            write_nifti(folder / "templates" / f"{name}.nii.gz", volume, description=words)

    def draw_targets(self, batch: Batch) -> Targets:
        """Draw which sequences of each study are rebuilt in this step, each study for itself."""
        acquired = batch.acquired.cpu()
        lots = torch.rand(acquired.shape).masked_fill(~acquired, -1.0)
        turn = lots.argsort(dim=1, descending=True).argsort(dim=1)
        drawn = acquired & (turn < (self.config.sequences_per_study or acquired.shape[1]))
        study, channel = drawn.nonzero(as_tuple=True)
        device = batch.volumes.device
        return Targets(
            volumes=batch.volumes[study.to(device), channel.to(device)][:, None],
            study=study,
            channel=channel,
            turn=turn[study, channel],
            sequences=tuple(batch.sequences[int(one)] for one in channel),
            affine=batch.affine[study.to(device)],
        )

    def draw_partners(self, acquired: Bool[Tensor, "b c"], targets: Targets) -> Int[Tensor, " n"]:
        """For each target the channel of another acquired sequence of its study, or -1 where there is none."""
        others = acquired.cpu()[targets.study].scatter(1, targets.channel[:, None], False)
        lots = torch.rand(others.shape).masked_fill(~others, -1.0)
        return torch.where(others.any(dim=1), lots.argmax(dim=1), -1)

    def make_views(self, batch: Batch, targets: Targets, *, progress: float, both: bool = False) -> dict[str, View]:
        """The views that count at this point of the run (or both): `cmr` and `md`, each with a mask of its own."""
        views = {}
        if both or self.config.cmr_weight > 0:
            views["cmr"] = self._hide(targets, self._fill(batch, targets, progress=progress))
        if both or self.config.md_weight > 0:
            views["md"] = self._hide(targets, self._read_templates(targets, torch.arange(len(targets.study))))
        return views

    def _fill(self, batch: Batch, targets: Targets, *, progress: float) -> Float[Tensor, "n 1 i j k"]:
        """What the CMR view hides its blocks behind: another sequence, its own template where there is none, or 0."""
        if self.config.filler == "zero":
            return torch.zeros_like(targets.volumes)
        partner = self.draw_partners(batch.acquired, targets)
        if progress < self.config.template_until:
            partner.fill_(-1)
        device = batch.volumes.device
        filler = batch.volumes[targets.study.to(device), partner.clamp(min=0).to(device)][:, None]
        (alone,) = (partner < 0).nonzero(as_tuple=True)
        if len(alone):
            filler[alone.to(device)] = self._read_templates(targets, alone).to(filler.dtype)
        return filler

    def _read_templates(self, targets: Targets, rows: Int[Tensor, " m"]) -> Float[Tensor, "m 1 i j k"]:
        assert self.bank is not None
        i, j, k = targets.volumes.shape[2:]
        names = [targets.sequences[int(row)] for row in rows]
        return self.bank.read(names, targets.affine[rows.to(targets.affine.device)], (i, j, k))

    def _hide(self, targets: Targets, filler: Tensor) -> View:
        """Put the filler where blocks are hidden; at the far ends blocks are cut where the crop ends."""
        edge, share = self.config.block_voxels, self.config.hidden_share
        hidden = hidden_voxels(targets.volumes, edge, share, torch.default_generator)
        return View(filled=torch.where(hidden, filler, targets.volumes), hidden=hidden)

    def _error(self, features: VisionFeatures, targets: Targets, view: View) -> Scalar:
        i, j, k = targets.volumes.shape[2:]
        rebuilt = self.decoder(features, (i, j, k))
        weights = voxel_weights(
            targets.volumes,
            view.hidden if self.config.counted == "hidden" else None,
            background_weight=self.config.background_weight,
        )
        return reconstruction_loss(rebuilt, targets.volumes, weights=weights, norm=self.config.error)

    def _contrast(self, other: VisionFeatures, template: VisionFeatures, turn: Int[Tensor, " n"]) -> Scalar:
        """Symmetric InfoNCE of the two views over all devices; negatives are the other studies (sec. 3).

        With several targets a study they take turns: otherwise a study's own sequences would be its negatives.
        """
        if self.config.contrast_on == "flattened":
            first, second = other.tokens.flatten(1), template.tokens.flatten(1)
        else:
            first, second = self.head(other.pooled), self.head(template.pooled)
        first, second, turns = (gather_with_gradient(rows) for rows in (first, second, turn.to(first.device)))
        total, counted = first.new_zeros(()), 0
        for one in turns.unique():
            rows = turns == one
            if (count := int(rows.sum())) > 1:
                total = total + count * info_nce(first[rows], second[rows], temperature=self.config.temperature)
                counted += count
        if counted == 0:
            raise ValueError(TOO_FEW)
        return total / counted


def _devices() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def tiny() -> BrainMVP.Config:
    """For a laptop: a convolution encoder of three stages on crops of about 40^3 at 4 mm; minutes on two cores.

    Measured on simulated studies, 200 steps of 8 crops, one run each: with templates in both views for the first half
    and no contrast they came to correlate 0.21 to 0.45 with the mean images, against 0.11 to 0.30 without the early
    phase and with the contrast; the two were not varied one at a time. A gain of 3 or 30 changed little but their
    size. After 300 steps of 16 crops they show the ventricles and the outline, under much noise: far from mean images.
    """
    return BrainMVP.Config(
        vision=PlainConv.Config(widths=(16, 32, 64), blocks=(0, 1, 1)),
        templates=TemplateBank.Config(gain=10.0),
        template_until=0.3,
    )


def mae() -> BrainMVP.Config:
    """The control of `tiny`: one sequence, zeros in the hidden blocks, nothing to look at but the sequence itself.

    Same encoder, decoder, mask, steps and studies read. A step encodes one view where `tiny` encodes two, so at equal
    steps it costs about half; for equal compute give it twice the steps.
    """
    return tiny().but(template_until=0.0, filler="zero", md_weight=0.0, mcl_weight=0.0)


def paper() -> BrainMVP.Config:
    """As the paper states it; what it does not state is the released code's."""
    return BrainMVP.Config(
        vision=VisionEncoder.Config.named("uniformer:small"),
        # Code: the 1 mm grid of SRI24, 240 x 240 x 155, where its studies lie in world space.
        templates=TemplateBank.Config(origin_mm=(-239.0, 0.0, 0.0), spacing_mm=(1.0, 1.0, 1.0), shape=(240, 240, 155)),
        linear_decoder=True,
        sequences_per_study=None,
        temperature=1.0,
        contrast_on="flattened",
        error="l2",
        counted="crop",
    )


def released() -> BrainMVP.Config:
    """As the released code and its shipped script train; write the store with percentiles 5 and 95 at 1 mm for it."""
    return paper().but(
        **{"templates.scaling": "minmax"},
        hidden_share=0.8,
        sequences_per_study=1,
        md_weight=10.0,
        template_until=0.2,
        error="mse",
    )
