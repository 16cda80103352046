"""What a report writer sees: cells of the maps of an encoder, sequence by sequence, and studies kept as such cells."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tomoglot.batches.batch import Batch
from tomoglot.recipes.recipe import Recipe

Levels = tuple[Tensor, ...]
Cells = tuple[int, int, int]
HALF_LIMIT = 60_000.0
TENSORS = ("volumes", "acquired", "affine", "subjects", "labels", "labelled")


class Sight(nn.Module):
    """Cells of the maps of a recipe's encoder, a sequence at a time; a copy, the recipe is left as it was."""

    def __init__(self, recipe: Recipe, *, maps: int, cells: int) -> None:
        """Copy the encoder.

        Raises:
            ValueError: the recipe's encoder reads several sequences at once, or there is none to copy.
        """
        super().__init__()
        self.maps, self.cells, self.sequences = maps, cells, recipe.sequences
        try:
            backbones = {name: recipe.backbone(name) for name in recipe.sequences}
        except NotImplementedError as error:
            raise ValueError(f"{error}; report_generation needs its maps") from error
        channels = {encoder.in_channels for encoder in backbones.values()}
        if channels != {1}:
            raise ValueError(
                f"the encoder of {type(recipe).__name__} reads {max(channels)} channels at once; report_generation "
                "shows a writer each sequence by itself"
            )
        # Copied together: sequences that share an encoder go on sharing it.
        self.encoders = nn.ModuleDict(copy.deepcopy(backbones))

    def forward(self, batch: Batch) -> Levels:
        """Levels (b, c, p, w): pooled, then maps from the coarsest; zeros where a sequence was not acquired."""
        levels: list[Tensor] = []
        for column, name in enumerate(batch.sequences):
            rows = batch.acquired[:, column]
            if not rows.any():
                continue
            features = self.encoders[name](batch.volumes[rows, column][:, None])
            maps = [self._cells(map_) for map_ in features.pyramid[::-1][: self.maps]]
            for at, found in enumerate([features.pooled[:, None], *maps]):
                if at == len(levels):
                    levels.append(found.new_zeros(len(batch), len(batch.sequences), *found.shape[1:]))
                levels[at][rows, column] = found
        return tuple(levels)

    def grids(self, volumes: Float[Tensor, "b c i j k"]) -> tuple[Cells, ...]:
        """Cells along each axis, a map of the pyramid at a time, for volumes of this size."""
        encoder = self.encoders[self.sequences[0]]
        with torch.no_grad():
            maps = encoder(volumes[:1, :1]).pyramid[::-1][: self.maps]
        return tuple(_at_most(map_, self.cells) for map_ in maps)

    def _cells(self, map_: Float[Tensor, "n w i j k"]) -> Float[Tensor, "n p _twice"]:
        """Mean and maximum over each cell, side by side."""
        size = _at_most(map_, self.cells)
        both = [F.adaptive_avg_pool3d(map_, size), F.adaptive_max_pool3d(map_, size)]
        return torch.cat(both, dim=1).flatten(2).transpose(1, 2)


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
