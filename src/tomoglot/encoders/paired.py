"""Volumes and reports of a batch with holes on both sides, and what the encoders make of what is left (MPMA-style)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tomoglot.batches.batch import Batch, Tokens, draw_volumes
from tomoglot.batches.mask import block_mask, token_mask
from tomoglot.encoders.memory import MemoryFusion
from tomoglot.encoders.patches import Voxels, imaged_patches
from tomoglot.encoders.text_trained import TrainedTextEncoder, mean_by_word, pool_words
from tomoglot.encoders.vit import ViT
from tomoglot.studies.report import report_body

# Texts that read their study's patches in one pass.
TEXTS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a step has before anything is hidden: volumes that were drawn, filled up to whole patches, and reports.

    Attributes:
        grid: patches along each axis.
        voxels: size of a volume before it was filled up to whole patches.
        study: row in the batch of each volume, and `slot` its number among those of its study.
        paired: studies with a volume and a report.
    """

    volumes: Float[Tensor, "v 1 i j k"]
    grid: Voxels
    voxels: Voxels
    study: Int[Tensor, " v"]
    slot: Int[Tensor, " v"]
    tokens: Tokens
    paired: Bool[Tensor, " b"]

    def join(self, of_volumes: Shaped[Tensor, "v n *e"]) -> Shaped[Tensor, "b m *e"]:
        """What belongs to patches, for the volumes of each study in a row; zeros (False) where it has fewer."""
        slots = int(self.slot.max()) + 1 if len(self.slot) else 1
        joined = of_volumes.new_zeros(len(self.paired), slots, *of_volumes.shape[1:])
        joined[self.study, self.slot] = of_volumes
        return joined.flatten(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A step's studies under one pair of masks, and what the encoders make of what is left.

    Attributes:
        visible: patches of each volume; `seen` has a token for each of them.
        joined: the seen tokens of a study's volumes in a row, `attended` where there are any, `imaged` where the patch
            holds more than one value.
        pooled: one vector a study of its seen tokens, the mean over its volumes.
        hidden: word pieces of each report; `states` has all of them.
        words: those that are not hidden, `present` where there are any.
        said: one vector a report of them.
    """

    visible: Bool[Tensor, "v p"]
    seen: Float[Tensor, "v n e"]
    joined: Float[Tensor, "b m e"]
    attended: Bool[Tensor, "b m"]
    imaged: Bool[Tensor, "b m"]
    pooled: Float[Tensor, "b e"]
    hidden: Bool[Tensor, "b t"]
    states: Float[Tensor, "b t d"]
    words: Float[Tensor, "b w d"]
    present: Bool[Tensor, "b w"]
    said: Float[Tensor, "b d"]


def draw_pairs(batch: Batch, vision: ViT, text: TrainedTextEncoder, *, sequences: int) -> Given:
    """Draw volumes, and cut reports into words: findings and impression; the technique names the sequences."""
    drawn, study, slot = draw_volumes(batch, sequences)
    volumes, grid = vision.filled(drawn)
    i, j, k = drawn.shape[2:]
    tokens = text.tokenise([report_body(said) if said and said.strip() else None for said in batch.reports])
    tokens = tokens.to(volumes.device)
    paired = batch.acquired.any(dim=1) & (tokens.word >= 0).any(dim=1)
    return Given(volumes=volumes, grid=grid, voxels=(i, j, k), study=study, slot=slot, tokens=tokens, paired=paired)


def look(given: Given, vision: ViT, text: TrainedTextEncoder, *, patch_share: float, word_share: float) -> View:
    """Hide shares of both sides (0 hides nothing), at random on the CPU, and encode what is left.

    Raises:
        ValueError: a volume is a single patch.
    """
    volumes, tokens, chance = given.volumes, given.tokens, torch.default_generator
    if patch_share > 0:
        i, j, k = volumes.shape[2:]
        blocks = block_mask((i, j, k), vision.patch, patch_share, chance, batch=len(volumes))
        visible = ~blocks.flatten(1).to(volumes.device)
        seen = vision.encode_visible(volumes, visible)
    else:
        seen = vision(volumes).tokens
        visible = torch.ones_like(seen[..., 0], dtype=torch.bool)
    hidden = torch.zeros_like(tokens.attended)
    if word_share > 0:
        hidden = token_mask(tokens.to("cpu"), word_share, True, chance).to(hidden.device)
    states = text(tokens, hidden)
    left = tokens.word.masked_fill(hidden, -1)
    words, present = mean_by_word(states, left)
    imaged = imaged_patches(volumes, vision.patch)[visible].view_as(seen[..., 0])
    count = torch.bincount(given.study, minlength=len(given.paired)).clamp(min=1)
    return View(
        visible=visible,
        seen=seen,
        joined=given.join(seen),
        attended=given.join(torch.ones_like(imaged)),
        # A study may have hidden all that it has of a body; then air has to do.
        imaged=given.join(imaged | ~imaged.any(dim=1, keepdim=True)),
        pooled=given.join(vision.pool(seen)[:, None]).sum(dim=1) / count[:, None],
        hidden=hidden,
        states=states,
        words=words,
        present=present,
        said=pool_words(states, left),
    )


def fuse_texts(
    texts: Sequence[Sequence[str]],
    patches: Float[Tensor, "b m e"],
    attended: Bool[Tensor, "b m"],
    text: TrainedTextEncoder,
    fusion: MemoryFusion,
) -> Float[Tensor, "t f"]:
    """The mean state of each study's texts after they read its patches, in order.

    Equal texts are encoded once, of whichever studies they are, and read once a study.

    Args:
        texts: any number for each study.
        patches: what `MemoryFusion.remember` made of each study's tokens, those that are `attended`.
    """
    rows = [(study, report_body(one)) for study, its in enumerate(texts) for one in its]
    readers: dict[str, list[int]] = {}
    # Texts of one length side by side, so that few are filled up.
    for study, one in sorted(set(rows), key=lambda row: (len(row[1]), row[1], row[0])):
        readers.setdefault(one, []).append(study)
    distinct, found = list(readers), [patches.new_zeros(0, fusion.config.width)]
    place: dict[tuple[int, str], int] = {}
    for at in range(0, len(distinct), TEXTS_AT_ONCE):
        part = distinct[at : at + TEXTS_AT_ONCE]
        tokens = text.tokenise([one if one.strip() else None for one in part]).to(patches.device)
        states = text(tokens)
        pairs = [(study, number) for number, one in enumerate(part) for study in readers[one]]
        place |= {(study, part[number]): len(place) + row for row, (study, number) in enumerate(pairs)}
        for start in range(0, len(pairs), TEXTS_AT_ONCE):
            study, said = torch.tensor(pairs[start : start + TEXTS_AT_ONCE], device=patches.device).T
            read = fusion.read(states[said], patches[study], attended[study])
            found.append(pool_words(read, tokens.word[said]))
    return torch.cat(found)[torch.tensor([place[row] for row in rows], dtype=torch.long, device=patches.device)]
