"""What a writer of reports, or who answers questions, sees: cells of the maps of an encoder, sequence by sequence.

Studies can be kept as such cells, so that a frozen encoder reads each of them once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.config import Settings
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import has_text_side
from tomoglot.types import Acquired, Scalar

Levels = tuple[Tensor, ...]
Cells = tuple[int, int, int]
HALF_LIMIT = 60_000.0
# Sines and cosines of a cell's place along each axis, at these many half turns over the crop, and the place itself.
TURNS = (1, 2, 4, 8)
TENSORS = ("volumes", "acquired", "affine", "subjects", "labels", "labelled")


class Sight(nn.Module):
    """Cells of the maps of a recipe's encoder, a sequence at a time; a copy, the recipe is left as it was."""

    def __init__(self, recipe: Recipe, *, maps: int, cells: int, aligned: bool = False) -> None:
        """Copy the encoder; with `aligned`, the recipe, whose vectors in the space shared with text are seen last.

        Raises:
            ValueError: the recipe's encoder reads several sequences at once, or there is none to copy.
        """
        super().__init__()
        self.maps, self.cells, self.sequences = maps, cells, recipe.sequences
        try:
            backbones = {name: recipe.backbone(name) for name in recipe.sequences}
        except NotImplementedError as error:
            raise ValueError(f"{error}; this task needs its maps") from error
        channels = {encoder.in_channels for encoder in backbones.values()}
        if channels != {1}:
            raise ValueError(
                f"the encoder of {type(recipe).__name__} reads {max(channels)} channels at once; this task "
                "reads each sequence by itself"
            )
        if aligned and not has_text_side(recipe):
            raise ValueError(f"{type(recipe).__name__} has no text side, so there are no aligned vectors to see")
        # Copied together: sequences that share an encoder go on sharing it, and it is kept once.
        self.aligner = copy.deepcopy(recipe) if aligned else None
        own: dict[str, VisionEncoder] = {}
        self._of: dict[str, str] = {}
        for name, encoder in ({} if aligned else copy.deepcopy(backbones)).items():
            self._of[name] = next((known for known, its in own.items() if its is encoder), name)
            own.setdefault(self._of[name], encoder)
        self.encoders = nn.ModuleDict(own)

    def forward(self, batch: Batch) -> Levels:
        """Levels (b, c, p, w): pooled, maps from the coarsest, aligned; zeros where a sequence was not acquired."""
        levels: list[Tensor] = []
        for column, name in enumerate(batch.sequences):
            rows = batch.acquired[:, column]
            if not rows.any():
                continue
            features = self.encoder(name)(batch.volumes[rows, column][:, None])
            maps = [self._cells(map_) for map_ in features.pyramid[::-1][: self.maps]]
            for at, found in enumerate([features.pooled[:, None], *maps]):
                if at == len(levels):
                    levels.append(found.new_zeros(len(batch), len(batch.sequences), *found.shape[1:]))
                levels[at][rows, column] = found
        if self.aligner is not None:
            levels.append(self.aligner.align_volumes(batch)[:, :, None])
        return tuple(levels)

    def encoder(self, sequence: str) -> VisionEncoder:
        """What reads a sequence."""
        if self.aligner is not None:
            return self.aligner.backbone(sequence)
        found = self.encoders[self._of[sequence]]
        assert isinstance(found, VisionEncoder)
        return found

    def grids(self, volumes: Float[Tensor, "b c i j k"]) -> tuple[Cells, ...]:
        """Cells along each axis, a map of the pyramid at a time, for volumes of this size."""
        encoder = self.encoder(self.sequences[0])
        with torch.no_grad():
            maps = encoder(volumes[:1, :1]).pyramid[::-1][: self.maps]
        return tuple(_at_most(map_, self.cells) for map_ in maps)

    def _cells(self, map_: Float[Tensor, "n w i j k"]) -> Float[Tensor, "n p _twice"]:
        """Mean and maximum over each cell, side by side."""
        size = _at_most(map_, self.cells)
        both = [F.adaptive_avg_pool3d(map_, size), F.adaptive_max_pool3d(map_, size)]
        return torch.cat(both, dim=1).flatten(2).transpose(1, 2)


class Shapes(Settings):
    """Features of each level, pooled ones first, and cells along each axis of each map; what is beyond has no place."""

    widths: tuple[int, ...]
    grids: tuple[Cells, ...]

    @property
    def places(self) -> tuple[Cells | None, ...]:
        """Cells of each level, or None for vectors of the whole volume."""
        return (None, *self.grids, *[None] * (len(self.widths) - 1 - len(self.grids)))


@dataclass(frozen=True, slots=True, eq=False)
class Shelf:
    """What an encoder shows of n studies, kept in half precision: where it is frozen, they pass through it once.

    `grids` are the cells along each axis, a map at a time.
    """

    studies: Batch
    levels: Levels
    grids: tuple[Cells, ...]

    @classmethod
    def of(cls, sight: Sight, batches: Iterable[Batch], *, device: torch.device | str = "cpu") -> Shelf:
        """Show every study of batches that end."""
        light, levels = [], []
        grids: tuple[Cells, ...] = ()
        with torch.no_grad():
            for batch in batches:
                moved = batch.to(device)
                levels.append([level.clamp(-HALF_LIMIT, HALF_LIMIT).half().cpu() for level in sight(moved)])
                grids = grids or sight.grids(moved.volumes)
                light.append(_without_volumes(batch))
        return cls(_join(light), tuple(torch.cat(parts) for parts in zip(*levels, strict=True)), grids)

    @property
    def shapes(self) -> Shapes:
        """Of its levels."""
        return Shapes(widths=tuple(level.shape[-1] for level in self.levels), grids=self.grids)

    def part(self, rows: Sequence[int]) -> Batch:
        """Some studies, without their volumes."""
        return take_rows(self.studies, list(rows))

    def endless(self, size: int, *, seed: int) -> Iterator[Batch]:
        """Batches for training: every study once an epoch, in a new order."""
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        while True:
            while len(order) < size:
                order += torch.randperm(len(self.studies), generator=generator).tolist()
            yield self.part(order[:size])
            order = order[size:]

    def once(self, size: int) -> Iterator[Batch]:
        """Every study once, in order."""
        for at in range(0, len(self.studies), size):
            yield self.part(range(at, min(at + size, len(self.studies))))


def _at_most(map_: Tensor, cells: int) -> Cells:
    i, j, k = (min(cells, size) for size in map_.shape[2:])
    return i, j, k


def _without_volumes(batch: Batch) -> Batch:
    nothing = batch.volumes.new_empty(*batch.volumes.shape[:2], 0, 0, 0)
    return replace(batch, volumes=nothing, masks=None, tokens=None)


def _join(batches: Sequence[Batch]) -> Batch:
    tensors: dict[str, Any] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}
    studies = tuple(study for batch in batches for study in batch.studies)
    return replace(
        batches[0], **tensors, studies=studies, reports=tuple(report for batch in batches for report in batch.reports)
    )


def take_rows(batch: Batch, rows: list[int]) -> Batch:
    """Some studies of a batch, in this order; masks and tokens stay behind."""
    tensors: dict[str, Any] = {name: getattr(batch, name)[rows] for name in TENSORS}
    return replace(
        batch,
        masks=None,
        tokens=None,
        **tensors,
        studies=tuple(batch.studies[row] for row in rows),
        reports=tuple(batch.reports[row] for row in rows),
    )


class HeldOut(nn.Module):
    """What learns by a cross-entropy, and can say what it is on studies that it does not learn from."""

    @torch.no_grad()
    def held_out_loss(self, batches: Iterable[Batch], device: torch.device | str = "cpu") -> float:
        """Mean loss, weighed by batch, without smoothing and dropout."""
        was_training = self.training
        self.eval()
        found = [(len(batch), self._cross_entropy(batch.to(device), smoothing=0.0).item()) for batch in batches]
        self.train(was_training)
        return sum(size * loss for size, loss in found) / sum(size for size, _ in found)

    def _cross_entropy(self, batch: Batch, *, smoothing: float) -> Scalar:
        raise NotImplementedError


class CellReader(HeldOut):
    """What the cells of a study say to whoever asks them; the base of what writes and answers. Keeps `Trainable`.

    `frozen` leaves the encoder as it is. Levels are standardised, a sequence at a time, by those of the studies on
    `shelf`; where only their shapes are given, the moments come with saved weights.
    """

    def __init__(self, sight: Sight, *, width: int, shelf: Shelf | Shapes, frozen: bool = True) -> None:
        super().__init__()
        self.frozen = frozen
        self.shapes = shelf if isinstance(shelf, Shapes) else shelf.shapes
        self.sight = sight.requires_grad_(not frozen)
        self.project = nn.ModuleList(nn.Linear(features, width) for features in self.shapes.widths)
        self.place = nn.Linear(3 * (1 + 2 * len(TURNS)), width)
        self.sequence = nn.Embedding(len(sight.sequences), width)
        self.level = nn.Embedding(len(self.shapes.widths), width)
        self.norm = nn.LayerNorm(width)
        self._levels = len(self.shapes.widths)
        for at, (features, grid) in enumerate(zip(self.shapes.widths, self.shapes.places, strict=True)):
            mean, spread = torch.zeros(2, len(sight.sequences), 1, features)
            if isinstance(shelf, Shelf):
                mean, spread = _moments(shelf.levels[at].float(), shelf.studies.acquired)
            self.register_buffer(f"mean_{at}", mean)
            self.register_buffer(f"spread_{at}", spread)
            # A vector of the whole volume has no place.
            self.register_buffer(f"places_{at}", _places(grid or (1, 1, 1)) * (grid is not None))
        self._shelved: dict[str, tuple[Shelf, int]] = {}

    def remember(self, shelf: Shelf) -> None:
        """Take these studies from the shelf when their volumes are not given."""
        self._shelved |= {study: (shelf, row) for row, study in enumerate(shelf.studies.studies)}

    def train(self, mode: bool = True) -> Self:
        """Frozen means in evaluation mode as well."""
        super().train(mode)
        if self.frozen:
            self.sight.eval()
        return self

    def memory(self, batch: Batch) -> tuple[Float[Tensor, "b m e"], Bool[Tensor, "b m"]]:
        """What is attended to, and which of it was acquired.

        Absent sequences are left out as far as all studies of the batch allow: most of the cost lies in the cells.
        """
        order = batch.acquired.int().argsort(dim=1, descending=True, stable=True)
        order = order[:, : int(batch.acquired.sum(dim=1).max())]
        acquired = batch.acquired.gather(1, order)
        studies = torch.arange(len(batch), device=order.device)[:, None]
        names = torch.tensor([self.sight.sequences.index(name) for name in batch.sequences], device=order.device)[order]
        seen = []
        for at, level in enumerate(self._look(batch)):
            scaled = (level[studies, order] - getattr(self, f"mean_{at}")[names]) / getattr(self, f"spread_{at}")[names]
            where = self.place(getattr(self, f"places_{at}"))
            seen.append(self.project[at](scaled) + where + self.sequence(names)[:, :, None] + self.level.weight[at])
        cells = torch.cat(seen, dim=2)
        known = acquired[:, :, None].expand(-1, -1, cells.shape[2])
        return self.norm(cells).flatten(1, 2), known.flatten(1)

    def _look(self, batch: Batch) -> Levels:
        if batch.volumes.numel():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                return tuple(self.sight(batch))
        kept = [self._shelved[study] for study in batch.studies]
        device = batch.acquired.device
        return tuple(
            torch.stack([shelf.levels[at][row] for shelf, row in kept]).float().to(device) for at in range(self._levels)
        )


def _places(grid: Cells) -> Float[Tensor, "p _d"]:
    """Where the middle of each cell lies, from -1 to 1 along each axis, with sines and cosines."""
    axes = [(2 * torch.arange(size) + 1) / size - 1 for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    turned = [wave(torch.pi * turns * places) for turns in TURNS for wave in (torch.sin, torch.cos)]
    return torch.cat([places, *turned], dim=1)


def _moments(level: Float[Tensor, "n c p w"], acquired: Acquired) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over studies and cells, a sequence at a time: (c, 1, w) each."""
    used = acquired[:, :, None, None].to(level.dtype)
    count = (used.sum(dim=0, keepdim=True) * level.shape[2]).clamp(min=1)
    mean = (level * used).sum(dim=(0, 2), keepdim=True) / count
    variance = ((level - mean).square() * used).sum(dim=(0, 2), keepdim=True) / count
    # A feature that is everywhere the same tells nothing, and must not be blown up.
    return mean[0], (variance + 1e-4 * mean.square() + 1e-8).sqrt()[0]
