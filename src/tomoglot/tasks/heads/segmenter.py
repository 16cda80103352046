"""The network that segmentation trains: a pre-trained encoder with sequences as channels, and a decoder with skips.

After BrainMVP's fine-tuning (papers: Rui 2025, Supplement A; code: Downstream). Absent sequences are channels of zeros,
or of the pre-trained templates. With a consistency weight, each study is shown twice, each time with other sequences
replaced by what stands in for an absent one, and the two copies are pulled together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.skip_decoder import SkipDecoder
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.encoders.weights import Adaptation, Coverage
from tomoglot.geometry import to_world
from tomoglot.objectives.overlap import copies_apart, overlap_loss, region_targets
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.heads.channels import channel_settings, load_channels
from tomoglot.types import Acquired, Scalar, Volumes

Box = tuple[int, int, int]
StandIn = Callable[[Batch], Volumes]
"""What a batch's channels would hold if their sequences were absent."""

# First word of the crops' random key; the loader's are 1 and 2.
CROP_KEY = 3
# Code: mix_transform draws 0 to 3 channels of four.
MOST_REPLACED = 3


def zeros(batch: Batch) -> Volumes:
    """An absent sequence is a channel of zeros."""
    return torch.zeros_like(batch.volumes)


def templates_of(recipe: Recipe, device: torch.device) -> StandIn:
    """An absent sequence is the pre-trained template of it, read where the crop lies in the world.

    Raises:
        ValueError: the recipe keeps no templates.
    """
    if type(recipe).templates is Recipe.templates:
        raise ValueError(f"{type(recipe).__name__} keeps no templates; use absent=zero")
    kept = copy.deepcopy(recipe).to(device).eval()

    def stand_in(batch: Batch) -> Volumes:
        try:
            with torch.no_grad():
                return kept.templates(batch).to(batch.volumes)
        except NotImplementedError as error:  # the method has templates, this model was trained without
            raise ValueError(str(error)) from error

    return stand_in


class Segmenter(nn.Module):
    """Encoder and decoder; keeps `Trainable`. The stand-in is no part of it: templates are not trained further.

    A `frozen` encoder keeps its weights and is in evaluation mode while the decoder is trained.

    Attributes:
        regions: names and mask labels, in the order of the output channels.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        regions: Mapping[str, tuple[int, ...]],
        *,
        deep_supervision: int = 2,
        stand_in: StandIn = zeros,
        dice_weight: float = 0.7,
        cross_entropy_weight: float = 0.3,
        over_batch: bool = False,
        consistency_weight: float = 0.0,
        consistency_on: Literal["embedding", "logits"] = "embedding",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.regions, self.frozen = encoder.requires_grad_(not frozen), dict(regions), frozen
        self.decoder = SkipDecoder(
            encoder.in_channels,
            encoder.widths,
            encoder.strides,
            out_channels=len(regions),
            deep_supervision=deep_supervision,
        )
        self.stand_in = stand_in
        self.dice_weight, self.cross_entropy_weight, self.over_batch = dice_weight, cross_entropy_weight, over_batch
        self.consistency_weight, self.consistency_on = consistency_weight, consistency_on

    def forward(self, volumes: Volumes) -> tuple[VisionFeatures, tuple[Float[Tensor, "b _r _i _j _k"], ...]]:
        """Features and logits, full size first, of volumes in which nothing is absent any more."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(volumes)
        return features, self.decoder(features, volumes)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen encoder stays in the latter (its statistics as well)."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def probabilities(self, volumes: Volumes) -> Float[Tensor, "b r i j k"]:
        """Probability of each region at each voxel."""
        return self(volumes)[1][0].float().sigmoid()

    def fill(self, batch: Batch) -> Volumes:
        """Volumes with the stand-in where a sequence is absent."""
        return torch.where(batch.acquired[:, :, None, None, None], batch.volumes, self.stand_in(batch))

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Scalar]:
        """`overlap`: Dice and cross-entropy; `consistency`: how far two copies with other absences lie apart.

        Raises:
            ValueError: the batch holds no masks.
        """
        if batch.masks is None:
            raise ValueError("segmentation needs masks; load with LoaderConfig(masks=True)")
        targets, known = region_targets(batch.masks, list(self.regions.values()))
        if not self.consistency_weight:
            return {"overlap": self._overlap(self(self.fill(batch))[1], targets, known)}
        stand_in = self.stand_in(batch)
        shown = [_only(batch.volumes, draw_kept(batch.acquired), stand_in) for _ in range(2)]
        features, logits = self(torch.cat(shown))
        overlap = self._overlap(logits, torch.cat([targets, targets]), torch.cat([known, known]))
        compared = features.pooled if self.consistency_on == "embedding" else logits[-1]
        return {"overlap": overlap, "consistency": self.consistency_weight * copies_apart(*compared.chunk(2))}

    def _overlap(self, logits: tuple[Tensor, ...], targets: Tensor, known: Tensor) -> Scalar:
        return overlap_loss(
            logits,
            targets,
            known,
            dice_weight=self.dice_weight,
            cross_entropy_weight=self.cross_entropy_weight,
            over_batch=self.over_batch,
        )


def draw_kept(acquired: Acquired) -> Acquired:
    """Which acquired sequences one copy still shows: 0 to 3 are taken away, drawn for each study, never the last."""
    present = acquired.sum(dim=1)
    most = (present - 1).clamp(0, MOST_REPLACED)
    taken = (torch.rand(len(acquired), device=acquired.device) * (most + 1)).long()
    lots = torch.rand(acquired.shape, device=acquired.device).masked_fill(~acquired, 2.0)
    return acquired & (lots.argsort(dim=1).argsort(dim=1) >= taken[:, None])


def build_segmenter(
    recipe: Recipe,
    sequences: tuple[str, ...],
    regions: Mapping[str, tuple[int, ...]],
    *,
    pretrained: bool,
    input_weights: Adaptation = "mean",
    from_sequence: str | None = None,
    seed: int = 0,
    **options: object,
) -> tuple[Segmenter, Coverage | None]:
    """A segmenter for these channels, and what of its encoder came from the recipe (None: nothing was asked to).

    Both arms draw the same weights first, so that they differ by the encoder that is copied over them alone.

    Raises:
        ValueError: the recipe's encoder does not fit, or has one a sequence and none was chosen.
    """
    source, settings = channel_settings(recipe, sequences, how=input_weights, from_sequence=from_sequence)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Segmenter(settings.build(), regions, **options)  # type: ignore[arg-type]
    return net, load_channels(net.encoder, source, recipe, sequences, how=input_weights) if pretrained else None


class LesionCrops:
    """Crops of whole fields: a share of them centred on a lesion, of a region drawn alike from those of the study.

    Where lesions are small, most uniform crops hold none, and a rare region is hardly seen. What is drawn is a function
    of the seed and of how many batches came before.
    """

    def __init__(
        self,
        fields: Iterable[Batch],
        shape: Box,
        regions: Mapping[str, tuple[int, ...]],
        *,
        lesion_share: float,
        seed: int,
    ) -> None:
        self._fields, self._shape, self._regions = fields, shape, regions
        self._lesion_share, self._seed = lesion_share, seed

    def __iter__(self) -> Iterator[Batch]:
        """Yield a crop of every study of every batch."""
        for number, batch in enumerate(self._fields):
            key = np.random.SeedSequence([CROP_KEY, self._seed, number])
            rng = np.random.Generator(np.random.Philox(key))
            starts = [self._start(rng, batch, row) for row in range(len(batch))]
            yield cut_batch(batch, starts, self._shape)

    def _start(self, rng: np.random.Generator, batch: Batch, row: int) -> Box:
        assert batch.masks is not None, "the fields are loaded with their masks"
        mask = batch.masks[row].numpy()
        room = np.array(mask.shape, dtype=np.int64) - np.array(self._shape, dtype=np.int64)
        start = rng.integers(0, room, endpoint=True)
        order = rng.permutation(len(self._regions))
        if rng.random() < self._lesion_share:
            labels = list(self._regions.values())
            for at in order:
                voxels = np.flatnonzero(np.isin(mask, labels[at]))
                if voxels.size:
                    centre = np.array(np.unravel_index(voxels[rng.integers(voxels.size)], mask.shape))
                    start = np.clip(centre - np.array(self._shape) // 2, 0, room)
                    break
        return int(start[0]), int(start[1]), int(start[2])


def cut_batch(batch: Batch, starts: list[Box], shape: Box) -> Batch:
    """A box of each study, from its own first voxel; affines follow."""
    assert batch.masks is not None
    volumes, masks, affines = [], [], []
    for row, start in enumerate(starts):
        i, j, k = (slice(first, first + edge) for first, edge in zip(start, shape, strict=True))
        volumes.append(batch.volumes[row, :, i, j, k])
        masks.append(batch.masks[row, i, j, k])
        affine = batch.affine[row].double().numpy().copy()
        affine[:3, 3] = to_world(affine, np.asarray(start))
        affines.append(torch.from_numpy(affine).to(batch.affine))
    return replace(batch, volumes=torch.stack(volumes), masks=torch.stack(masks), affine=torch.stack(affines))


def _only(volumes: Volumes, kept: Acquired, stand_in: Volumes) -> Volumes:
    return torch.where(kept[:, :, None, None, None], volumes, stand_in)
