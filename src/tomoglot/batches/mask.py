"""Masks that hide: blocks of voxels, and tokens or whole words of a report. True is hidden."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Bool, Float, Int
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


def hidden_voxels(
    volumes: Float[Tensor, "b c i j k"], block: Voxels | int, ratio: float, generator: torch.Generator
) -> Bool[Tensor, "b 1 i j k"]:
    """Voxels of hidden blocks of volumes of any size: blocks at the far ends are cut where the crop ends.

    Raises:
        ValueError: those of `block_mask`, but for a crop that blocks do not tile.
    """
    edges, shape = _edges(block), volumes.shape[2:]
    i, j, k = (-(-size // edge) * edge for size, edge in zip(shape, edges, strict=True))
    blocks = block_mask((i, j, k), edges, ratio, generator, batch=len(volumes)).to(volumes.device)
    return voxel_mask(blocks, edges)[..., : shape[0], : shape[1], : shape[2]]


def token_mask(
    tokens: Tokens, ratio: float, whole_word: bool, generator: torch.Generator, *, turns: int | None = None
) -> Bool[Tensor, "b t"]:
    """Hide ``round(ratio * n)`` of a report's n tokens, or of its n words with all their tokens; at least one.

    Special tokens and padding are never hidden, and a report without words hides nothing. With `turns`, a report has so
    many masks, always the same, and `generator` draws which of them comes: what a mask cost to encode may then be kept.

    Raises:
        ValueError: the ratio is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio must lie between 0 and 1, got {ratio}")
    # On the CPU: there is a decision a report, and each would stop another device.
    device, tokens = tokens.ids.device, tokens.to("cpu")
    mask = torch.zeros_like(tokens.attended)
    drawn = [0] * len(mask) if turns is None else torch.randint(turns, (len(mask),), generator=generator).tolist()
    keys = None if turns is None else report_keys(tokens).tolist()
    for report, turn in enumerate(drawn):
        chance = generator if keys is None else torch.Generator().manual_seed(keys[report] + turn)
        maskable = tokens.attended[report] & (tokens.word[report] >= 0)
        places = maskable.nonzero().squeeze(1)
        units = tokens.word[report][places] if whole_word else places
        choices = units.unique()
        if len(choices) == 0:
            continue
        hidden = max(round(ratio * len(choices)), 1)
        order = torch.randperm(len(choices), generator=chance, device=chance.device).to(choices.device)
        mask[report, places[torch.isin(units, choices[order[:hidden]])]] = True
    return mask.to(device)


def report_keys(tokens: Tokens) -> Int[Tensor, " b"]:
    """A number for the words of each report: equal words, equal numbers; others hardly ever (62 bits of SHA-256)."""
    lines = zip(tokens.ids.cpu(), tokens.attended.cpu(), strict=True)
    digests = [hashlib.sha256(ids[there].numpy().tobytes()).digest() for ids, there in lines]
    return torch.tensor([int.from_bytes(digest[:8]) >> 2 for digest in digests], device=tokens.ids.device)


def _edges(block: Voxels | int) -> Voxels:
    return (block, block, block) if isinstance(block, int) else block
