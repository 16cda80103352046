"""What crosses from batches to recipes and tasks: one frozen record of tensors.

Everything a method may need of a study is here, and nothing about files. A sequence that a study lacks is a channel
of zeros with `acquired` false: no later stage may guess it from the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tomoglot.types import Acquired, Affines, LesionMasks, Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Reports as a tokenizer sees them. `sentence` is the sentence of each token, -1 for special tokens and padding."""

    ids: Int[Tensor, "b t"]
    attended: Bool[Tensor, "b t"]
    sentence: Int[Tensor, "b t"]
    word: Int[Tensor, "b t"]

    def to(self, device: torch.device | str) -> Tokens:
        """Copy to a device."""
        return Tokens(
            ids=self.ids.to(device),
            attended=self.attended.to(device),
            sentence=self.sentence.to(device),
            word=self.word.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Crops of some studies, with all that is known of them.

    Attributes:
        volumes: intensities after the plan, zero where a sequence was not acquired.
        acquired: which sequences each study has.
        sequences: the names of the channels, in order.
        affine: voxel of the crop to world mm (RAS+); the world offset of each crop is its last column.
        studies: the catalogue's keys, which are pseudonyms.
        subjects: a number a subject; equal numbers are the same person.
        reports: the report's text, or None.
        labels: findings, 1 present and 0 absent; read it only where `labelled`.
        labelled: which findings are known.
        findings: the names of the findings, in order.
        masks: lesion labels of the crop, or None.
        tokens: the reports tokenised, where the loader was given a tokenizer.
    """

    volumes: Volumes
    acquired: Acquired
    sequences: tuple[str, ...]
    affine: Affines
    studies: tuple[str, ...]
    subjects: Int[Tensor, " b"]
    reports: tuple[str | None, ...]
    labels: Float[Tensor, "b f"]
    labelled: Bool[Tensor, "b f"]
    findings: tuple[str, ...]
    masks: LesionMasks | None = None
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.studies)

    def to(self, device: torch.device | str) -> Batch:
        """Copy every tensor to a device."""
        return replace(
            self,
            volumes=self.volumes.to(device, non_blocking=True),
            acquired=self.acquired.to(device),
            affine=self.affine.to(device),
            subjects=self.subjects.to(device),
            labels=self.labels.to(device),
            labelled=self.labelled.to(device),
            masks=None if self.masks is None else self.masks.to(device),
            tokens=None if self.tokens is None else self.tokens.to(device),
        )


def stack(batches: Sequence[Batch]) -> Batch:
    """Batches of the same sequences and findings as one; masks and tokens are left out.

    Raises:
        ValueError: no batch, or they differ in their sequences or findings.
    """
    if len({(batch.sequences, batch.findings) for batch in batches}) != 1:
        raise ValueError("only batches of the same sequences and findings, and at least one, can be stacked")
    return replace(
        batches[0],
        volumes=torch.cat([batch.volumes for batch in batches]),
        acquired=torch.cat([batch.acquired for batch in batches]),
        affine=torch.cat([batch.affine for batch in batches]),
        subjects=torch.cat([batch.subjects for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        labelled=torch.cat([batch.labelled for batch in batches]),
        studies=tuple(chain.from_iterable(batch.studies for batch in batches)),
        reports=tuple(chain.from_iterable(batch.reports for batch in batches)),
        masks=None,
        tokens=None,
    )


def draw_volumes(batch: Batch, count: int) -> tuple[Float[Tensor, "v 1 i j k"], Int[Tensor, " v"], Int[Tensor, " v"]]:
    """At most `count` acquired sequences of each study, drawn at random; the study of each, and its number in it."""
    lots = torch.where(batch.acquired.cpu(), torch.rand(batch.acquired.shape), -1.0)
    drawn = lots.topk(min(count, lots.shape[1]), dim=1)
    study, slot = (drawn.values >= 0).nonzero(as_tuple=True)
    channel = drawn.indices[study, slot].to(batch.volumes.device)
    study, slot = study.to(channel.device), slot.to(channel.device)
    return batch.volumes[study, channel][:, None], study, slot
