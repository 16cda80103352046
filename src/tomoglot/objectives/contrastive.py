"""Contrast between images and texts: InfoNCE and the sigmoid loss, on one process or gathered over many.

An image may have several texts and a text several images: the volumes of one study share one report, so one-to-one
targets would push a volume away from its own report (MedMAP). `positives` says who belongs to whom.

Gathering. With ``gather=True`` every process computes the loss of the whole batch, so the value is the same on each,
and the gradient flows back to the process a row came from. Summed over processes that gradient is `world` times the
true one, which is what a wrapper that averages gradients (DDP) divides out: parameters then move exactly as on one
process with the whole batch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, distributed
from torch.nn import functional as F

from tomoglot.types import Scalar


def info_nce(
    image: Float[Tensor, "b e"],
    text: Float[Tensor, "t e"],
    *,
    temperature: float | Float[Tensor, ""],
    direction: Literal["both", "image_to_text", "text_to_image"] = "both",
    weight: float = 0.5,
    positives: Bool[Tensor, "r u"] | None = None,
    gather: bool = False,
) -> Scalar:
    """Cross-entropy of each row's positives among all candidates (van den Oord 2018; symmetric: Radford 2021, fig. 3).

    Rows are compared by cosine, divided by `temperature` (not its logarithm: who learns a logarithm exponentiates
    it). A row with several positives wants an equal share on each (Khosla 2020, eq. 2).

    Args:
        image: one vector an image; any length, it is normalised here.
        text: one vector a text.
        temperature: the divisor of cosines, above zero.
        direction: "image_to_text" ranks texts for each image, "text_to_image" images for each text, "both" adds them.
        weight: share of image-to-text under "both"; 0.5 is the symmetric loss (MedMAP's weighted form uses 0.75).
        positives: who belongs to whom; without it row n of `image` belongs to row n of `text`. With `gather` its
            columns are the texts of all processes, in rank order.
        gather: compare with the rows of all processes; their numbers may differ.

    Raises:
        ValueError: no positives and different numbers of rows; a row to be ranked for has no positive; a temperature
            that is not above zero; a weight outside 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the share of image-to-text, from 0 to 1, got {weight}")
    cosines, belongs = _compare(image, text, temperature=temperature, positives=positives, gather=gather)
    logits = cosines / temperature
    if direction == "image_to_text":
        return rank_loss(logits, belongs, "image")
    if direction == "text_to_image":
        return rank_loss(logits.T, belongs.T, "text")
    return weight * rank_loss(logits, belongs, "image") + (1 - weight) * rank_loss(logits.T, belongs.T, "text")


def sigmoid_loss(
    image: Float[Tensor, "b e"],
    text: Float[Tensor, "t e"],
    *,
    temperature: float | Float[Tensor, ""],
    bias: float | Float[Tensor, ""],
    positives: Bool[Tensor, "r u"] | None = None,
    gather: bool = False,
) -> Scalar:
    """Each pair is a yes-or-no question of its own; the sum over pairs, per image (SigLIP, Zhai 2023, sec. 3.2).

    Several positives need no change here, and a row without one is fine. Start `bias` near -10 with a temperature of
    0.1, as the paper does: most pairs are negative. Other arguments and errors are those of `info_nce`.
    """
    cosines, belongs = _compare(image, text, temperature=temperature, positives=positives, gather=gather)
    logits = cosines / temperature + bias
    signed = torch.where(belongs, logits, -logits)
    return -F.logsigmoid(signed).sum() / len(logits)


def gather_with_gradient(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "w ..."]:
    """Rows of every process, in rank order, with the gradient of each process flowing back to where a row came from.

    The numbers of rows may differ between processes (a study with fewer sequences gives fewer rows). On one process
    the input comes back unchanged.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, mine)
    return _Gather.apply(rows, tuple(int(count.item()) for count in counts))


def _compare(
    image: Tensor,
    text: Tensor,
    *,
    temperature: float | Tensor,
    positives: Tensor | None,
    gather: bool,
) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs in float32 or wider, and who belongs to whom."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature divides the cosines, it must be above zero, got {temperature}")
    # Half precision keeps three digits of a cosine; divided by a temperature of 0.01 the last one moves the loss.
    image, text = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (image, text))
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    if gather:
        image, text = gather_with_gradient(image), gather_with_gradient(text)
        positives = None if positives is None else gather_with_gradient(positives)
    if positives is None:
        if len(image) != len(text):
            raise ValueError(f"{len(image)} images and {len(text)} texts: say with `positives` who belongs to whom")
        positives = torch.eye(len(image), dtype=torch.bool, device=image.device)
    if positives.shape != (len(image), len(text)):
        raise ValueError(
            f"positives is {tuple(positives.shape)}, wanted {len(image)} images by {len(text)} texts"
            + (" (with gather: this process's images by all processes' texts)" if gather else "")
        )
    with torch.autocast(image.device.type, enabled=False):
        return image @ text.T, positives


def rank_loss(logits: Float[Tensor, "r u"], belongs: Bool[Tensor, "r u"], row: str) -> Scalar:
    """Mean over rows of the cross-entropy against an equal share on each positive; `row` names them in an error.

    Raises:
        ValueError: a row has no positive.
    """
    num_positives = belongs.sum(1)
    if not bool((num_positives > 0).all()):
        lonely = int((num_positives == 0).sum())
        raise ValueError(f"{lonely} of {len(logits)} {row} rows have no positive, and cannot be ranked for; drop them")
    log_share = F.log_softmax(logits, dim=1)
    return -(log_share.masked_fill(~belongs, 0.0).sum(1) / num_positives).mean()


class _Gather(torch.autograd.Function):
    """All-gather of rows whose numbers may differ; backward adds the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        # gloo and nccl gather equal sizes only, so each process pads to the largest; bool travels as bytes.
        sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
        padded = sent.new_zeros((max(counts), *sent.shape[1:]))
        padded[: len(sent)] = sent
        received = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(received, padded)
        whole = torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])
        return whole.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        start = sum(ctx.counts[: distributed.get_rank()])
        return total[start : start + ctx.counts[distributed.get_rank()]], None
