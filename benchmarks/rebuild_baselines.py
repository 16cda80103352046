"""What rebuilding hidden patches is worth beating: three answers that need no network, beside any reconstruction loss.

    python benchmarks/rebuild_baselines.py STORE --patch 8 8 8

Targets are those of masked autoencoding: each patch less its mean and over its deviation, mean square over all voxels
of all patches but those that fill a volume up to whole patches; a patch of one value is 0. `zero` is to say nothing.
`place` is the mean of the same place and sequence over other studies. `around` is a ridge regression from the voxels
within `--reach` of the patch, less their mean and over their deviation, fitted on other studies, at the best of three
penalties by what it is scored on: it is shown all patches around, of which half are hidden from a network, and it is
linear and forgets where in the body it is. Patches at the volume's edge have no `around`: they are left out of that
column and of its `zero, inside`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.encoders.patches import Voxels, fill_up, patch_grid, patch_targets, real_voxels
from tomoglot.store.reader import Store

PENALTIES = (30.0, 300.0, 3000.0)
PER_VOLUME = 80  # patches that the regression sees of a volume


def surroundings(volumes: Tensor, patch: Voxels, reach: int) -> tuple[Tensor, Tensor]:
    """Of each patch that lies inside: its number, and the voxels around it, standardised among themselves."""
    i, j, k = volumes.shape[2:]
    grid = patch_grid((i, j, k), patch)
    reaches = [reach if count > 1 else 0 for count in grid]
    boxes = volumes[:, 0]
    for axis, (edge, far, count) in enumerate(zip(patch, reaches, grid, strict=True), start=1):
        inner = boxes.narrow(axis, edge - far, (count - 2) * edge + 2 * far) if count > 1 else boxes
        boxes = inner.unfold(axis, edge + 2 * far, edge)
    number = torch.arange(grid[0] * grid[1] * grid[2]).view(grid)
    inside = number[tuple(slice(1, -1) if count > 1 else slice(None) for count in grid)].flatten()
    shell = torch.ones(boxes.shape[4:], dtype=torch.bool)
    shell[tuple(slice(far, far + edge) for far, edge in zip(reaches, patch, strict=True))] = False
    around = boxes.flatten(1, 3)[:, :, shell]
    deviation, mean = torch.std_mean(around, dim=2, keepdim=True)
    return inside, (around - mean) / deviation.clamp(min=1e-3)


def by_place(targets: list[Tensor], sequences: list[str], counted: int) -> float:
    """Missed by the mean of place and sequence, fitted on the first half of each sequence's volumes."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for target, sequence in zip(targets, sequences, strict=True):
        groups[sequence].append(target)
    missed = []
    for rows in groups.values():
        half = len(rows) // 2
        if half:
            told = torch.stack(rows[:half]).mean(dim=0)
            missed += [(row - told).square().sum() / counted for row in rows[half:]]
    return torch.stack(missed).mean().item()


def ridge(known: Tensor, wanted: Tensor) -> float:
    """Missed by the best of three ridge regressions, fitted on the first three quarters."""
    fit = len(known) * 3 // 4
    square, cross = known[:fit].T @ known[:fit], known[:fit].T @ wanted[:fit]
    found = []
    for penalty in PENALTIES:
        weights = torch.linalg.solve(square + penalty * torch.eye(len(square)), cross)
        found.append((known[fit:] @ weights - wanted[fit:]).square().mean().item())
    return min(found)


def main() -> None:
    """Measure and print a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--patch", type=int, nargs=3, default=(8, 8, 8))
    parser.add_argument("--reach", type=int, default=2)
    parser.add_argument("--batches", type=int, default=25)
    parser.add_argument("--jitter", type=int, default=3, help="voxels, as augment.jitter_voxels")
    given = parser.parse_args()
    torch.manual_seed(0)
    i, j, k = given.patch
    patch = (i, j, k)
    read = LoaderConfig.model_validate(
        {
            "batch_size": 16,
            "workers": 0,
            "sequences_per_study": 1,
            "augment": {"jitter_voxels": given.jitter, "shift": 0, "scale": 0},
        }
    )
    targets: list[Tensor] = []
    sequences: list[str] = []
    known, wanted = [], []
    loader = Loader(Store.open(given.store), read, split="train", train=True)
    for _, batch in zip(range(given.batches), loader, strict=False):
        read_volumes = batch.volumes[batch.acquired][:, None].float()
        volumes = fill_up(read_volumes, patch)
        whole, size = volumes.shape[2:], read_volumes.shape[2:]
        real = real_voxels((size[0], size[1], size[2]), patch, patch_grid((whole[0], whole[1], whole[2]), patch))
        target, counted = patch_targets(volumes, patch, real=real), int(real.sum())
        targets += list(target)
        sequences += [batch.sequences[int(row.nonzero()[0])] for row in batch.acquired]
        inside, around = surroundings(volumes, patch, given.reach)
        chosen = torch.randperm(len(inside))[:PER_VOLUME]
        known.append(around[:, chosen].flatten(0, 1))
        wanted.append(target[:, inside[chosen]].flatten(0, 1))
    zero = torch.stack([target.square().sum() / counted for target in targets]).mean().item()
    asked, answers = torch.cat(known), torch.cat(wanted)
    print("| store | patch | zero | place | zero, inside | around | voxels known |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {given.store.name} | {i} x {j} x {k} | {zero:.2f} | {by_place(targets, sequences, counted):.2f} | "
        f"{answers.square().mean().item():.2f} | {ridge(asked, answers):.2f} | {asked.shape[1]} |"
    )


if __name__ == "__main__":
    main()
