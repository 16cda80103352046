"""Masks that hide: blocks of voxels, and tokens or whole words of a report. True is hidden."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from tomoglot.batches.batch import Tokens

Voxels = tuple[int, int, int]


def block_mask(
    shape: Voxels, block: Voxels | int, ratio: float, generator: torch.Generator, *, batch: int = 1
) -> Bool[Tensor, "b pi pj pk"]:
    """Hide the same number of blocks in every volume: ``round(ratio * blocks)``, kept within 1 and all but one.

    `shape` is the crop's and `block` the block's size in voxels. ``flatten(1)`` gives one value a visual token.

    Raises:
        ValueError: blocks do not tile the crop exactly, the ratio is not between 0 and 1, or there is only one block.
    """
    edges = _edges(block)
    if any(size % edge for size, edge in zip(shape, edges, strict=True)):
        raise ValueError(f"blocks of {edges} voxels do not tile a crop of {shape} voxels")
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio must lie between 0 and 1, got {ratio}")
    grid = tuple(size // edge for size, edge in zip(shape, edges, strict=True))
    blocks = grid[0] * grid[1] * grid[2]
    if blocks < 2:
        raise ValueError(f"a crop of {shape} voxels is one block of {edges}: nothing would be left to see")
    hidden = min(max(round(ratio * blocks), 1), blocks - 1)
    order = torch.rand(batch, blocks, generator=generator, device=generator.device).argsort(dim=1)
    mask = torch.zeros(batch, blocks, dtype=torch.bool, device=generator.device)
    return mask.scatter_(1, order[:, :hidden], True).reshape(batch, *grid)


def voxel_mask(blocks: Bool[Tensor, "b pi pj pk"], block: Voxels | int) -> Bool[Tensor, "b 1 i j k"]:
    """Spread each block's value over exactly its own voxels."""
    for axis, edge in enumerate(_edges(block), start=1):
        blocks = blocks.repeat_interleave(edge, dim=axis)
    return blocks.unsqueeze(1)


def token_mask(tokens: Tokens, ratio: float, whole_word: bool, generator: torch.Generator) -> Bool[Tensor, "b t"]:
    """Hide ``round(ratio * n)`` of a report's n tokens, or of its n words with all their tokens; at least one.

    Special tokens and padding are never hidden, and a report without words hides nothing.

    Raises:
        ValueError: the ratio is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio must lie between 0 and 1, got {ratio}")
    mask = torch.zeros_like(tokens.attended)
    for report in range(len(mask)):
        maskable = tokens.attended[report] & (tokens.word[report] >= 0)
        places = maskable.nonzero().squeeze(1)
        units = tokens.word[report][places] if whole_word else places
        choices = units.unique()
        if len(choices) == 0:
            continue
        hidden = max(round(ratio * len(choices)), 1)
        order = torch.randperm(len(choices), generator=generator, device=generator.device).to(choices.device)
        mask[report, places[torch.isin(units, choices[order[:hidden]])]] = True
    return mask


def _edges(block: Voxels | int) -> Voxels:
    return (block, block, block) if isinstance(block, int) else block
