"""Local alignment of words with patches, both ways, over all pairs of a batch, a piece at a time (MPMA-style GLA).

How much report m and image n agree is asked twice. Each word mixes the image's patches, those like it counting most
(a softmax of cosines), and is compared with its mixture; the mean over words is one number. Each patch does the same
with the report's words. Both tables of numbers are then contrasted as any image-text similarity is (GLoRIA, Huang 2021,
sec. 3.3, takes words only and a soft maximum over them; MGCA, Wang 2022, sec. 3.3, both ways within a pair).

A mixture is never made: its cosine to the word needs its product with the word, which is a sum of cosines already
there, and its length, which is a product with the patches' own table of cosines. So no pair x word x embedding tensor
exists. What does, pair x word x patch, is made for some reports at a time and made again in the backward pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tomoglot.objectives.contrastive import gather_with_gradient, rank_loss
from tomoglot.types import Scalar

# Least square of a mixture's length: opposite vectors may cancel.
SHORTEST = 1e-8
Ways = Literal["both", "word_to_patch", "patch_to_word"]


def word_contrast(
    words: Float[Tensor, "m t e"],
    patches: Float[Tensor, "n p e"],
    *,
    present: Bool[Tensor, "m t"],
    imaged: Bool[Tensor, "n p"],
    positives: Bool[Tensor, "n m"],
    temperature: float,
    attention_temperature: float,
    ways: Ways = "both",
    max_entries: int = 2**23,
) -> Scalar:
    """Contrast of images and reports by their words and patches: a mean over the ways that are on.

    Each way is a symmetric `info_nce` with the table of `word_likeness` in place of cosines. Compares what it is given:
    over devices, gather first (`gather_rows`), and every device computes the whole.

    Args:
        words: vectors of each report's words; any length, they are normalised here.
        patches: vectors of each image's patches.
        present: which words there are.
        imaged: which patches are asked and read.
        positives: which report belongs to which image.
        temperature: of the contrast.
        attention_temperature: of the mixtures.
        ways: who asks whom.
        max_entries: of a table of pair x word x patch, at once.

    Raises:
        ValueError: a report without a word, an image without a patch, or a row without a positive.
    """
    by_word, by_patch = word_likeness(
        words,
        patches,
        present=present,
        imaged=imaged,
        attention_temperature=attention_temperature,
        max_entries=max_entries,
    )
    tables = {"word_to_patch": by_word, "patch_to_word": by_patch}
    asked = [table / temperature for way, table in tables.items() if ways in ("both", way)]
    losses = [(rank_loss(one, positives, "image") + rank_loss(one.T, positives.T, "report")) / 2 for one in asked]
    return torch.stack(losses).mean()


def word_likeness(
    words: Float[Tensor, "m t e"],
    patches: Float[Tensor, "n p e"],
    *,
    present: Bool[Tensor, "m t"],
    imaged: Bool[Tensor, "n p"],
    attention_temperature: float,
    max_entries: int = 2**23,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """How much each image and each report agree: as the report's words find it, and as the image's patches do.

    Raises:
        ValueError: a report without a word, or an image without a patch.
    """
    for there, what in ((present, "reports have no word"), (imaged, "images have no patch")):
        lacking = int((~there.any(dim=1)).sum())
        if lacking:
            raise ValueError(f"{lacking} of {len(there)} {what} to compare by; leave them out")
    # Half precision keeps three digits of a cosine, which the temperatures would show.
    with torch.autocast(words.device.type, enabled=False):
        words, patches = F.normalize(words.float(), dim=2), F.normalize(patches.float(), dim=2)
        among_patches = patches @ patches.transpose(1, 2)
        at_once = max(1, max_entries // max(1, imaged.numel() * words.shape[1]))
        pieces = []
        for start in range(0, len(words), at_once):
            part = slice(start, start + at_once)
            given = (words[part], present[part], patches, imaged, among_patches, attention_temperature)
            if at_once >= len(words):
                pieces.append(_piece(*given))
            else:
                pieces.append(checkpoint(_piece, *given, use_reentrant=False, preserve_rng_state=False))
        by_word, by_patch = (torch.cat(tables, dim=1) for tables in zip(*pieces, strict=True))
    return by_word, by_patch


def attention_maps(
    words: Float[Tensor, "q w e"],
    patches: Float[Tensor, "n p e"],
    *,
    present: Bool[Tensor, "q w"],
    imaged: Bool[Tensor, "n p"],
    attention_temperature: float,
) -> Float[Tensor, "n q p"]:
    """Shares of an image's patches in the mixtures of a phrase's words, the mean over its words; they sum to 1."""
    words, patches = F.normalize(words.float(), dim=2), F.normalize(patches.float(), dim=2)
    logits = torch.einsum("npe,qwe->nqwp", patches, words) / attention_temperature
    shares = logits.masked_fill(~imaged[:, None, None, :], -torch.inf).softmax(dim=3)
    counted = present[None, :, :, None]
    return (shares * counted).sum(dim=2) / counted.sum(dim=2)


def gather_rows(rows: Shaped[Tensor, "b t ..."]) -> Shaped[Tensor, "w u ..."]:
    """Rows of every process, as `gather_with_gradient`, filled up with zeros to the longest of any process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    longest = torch.tensor([rows.shape[1]], device=rows.device)
    distributed.all_reduce(longest, op=distributed.ReduceOp.MAX)
    # Counted from the last axis, of which the second comes last.
    filled = F.pad(rows, [0, 0] * (rows.ndim - 2) + [0, int(longest) - rows.shape[1]])
    return gather_with_gradient(filled)


def _piece(*given: *tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]) -> tuple[Tensor, Tensor]:
    """Both tables for some reports."""
    words, present, patches, imaged, among_patches, temperature = given
    cosines = torch.einsum("mte,npe->nmtp", words, patches)
    by_word = _asked(cosines, present, imaged, among_patches, temperature=temperature)
    among_words = words @ words.transpose(1, 2)
    by_patch = _asked(cosines.permute(1, 0, 3, 2), imaged, present, among_words, temperature=temperature)
    return by_word, by_patch.T


def _asked(
    cosines: Float[Tensor, "a r q k"],
    asking: Bool[Tensor, "r q"],
    there: Bool[Tensor, "a k"],
    among: Float[Tensor, "a k k"],
    *,
    temperature: float,
) -> Float[Tensor, "a r"]:
    """Mean over those asking of the cosine to their mixture of what is there."""
    shares = (cosines / temperature).masked_fill(~there[:, None, None, :], -torch.inf).softmax(dim=3)
    squares = ((shares.flatten(1, 2) @ among).view_as(shares) * shares).sum(dim=3)
    like = (shares * cosines).sum(dim=3) * squares.clamp(min=SHORTEST).rsqrt()
    return (like * asking).sum(dim=2) / asking.sum(dim=1)
