"""What can be explained: a recipe's zero-shot score, or a fine-tuned detector's logit; trained, or as first drawn."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import LoaderConfig
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import from_scratch, has_text_side
from tomoglot.tasks.heads.detector import Detector, DetectorCard, load_detector, read_card
from tomoglot.tasks.maps.attribution import Asked
from tomoglot.tasks.queries.prompts import Prompts
from tomoglot.tasks.zero_shot import Against, against_others, embed_prompts

HEAD_DEVIATION = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A network's answers, those of the same network with redrawn weights, and how studies are loaded for it.

    `card` is that of a detector, or None.
    """

    trained: Asked
    redrawn: Asked
    sequences: tuple[str, ...]
    loader: LoaderConfig
    card: DetectorCard | None = None


def zero_shot_answers(
    recipe: Recipe, loader: LoaderConfig, prompts: Mapping[str, Prompts], *, against: Against, seed: int
) -> Answers:
    """The mean over acquired sequences of the similarity for less the similarity against, as `zero_shot` has it.

    Raises:
        ValueError: the recipe has no text side.
    """
    if not has_text_side(recipe):
        raise ValueError(
            f"{type(recipe).__name__} has no text side: give the folder `detector` that `transfer abnormality --out` "
            "wrote, and its logits are explained"
        )
    trained, redrawn = (_zero_shot(one, prompts, against) for one in (recipe.eval(), from_scratch(recipe, seed=seed)))
    return Answers(trained=trained, redrawn=redrawn, sequences=recipe.sequences, loader=loader)


def _zero_shot(recipe: Recipe, prompts: Mapping[str, Prompts], against: Against) -> Asked:
    vectors = embed_prompts(recipe, prompts)
    vectors = against_others(vectors) if against == "others" else vectors
    return likeness(recipe, np.stack([vector.direction for vector in vectors.values()]), tuple(vectors))


def likeness(recipe: Recipe, directions: NDArray[np.floating], names: tuple[str, ...]) -> Asked:
    """The mean over acquired sequences of the product of the aligned vector with each direction (f, d)."""
    towards = torch.from_numpy(directions)

    def answer(batch: Batch) -> Float[Tensor, "b f"]:
        aligned = recipe.align_volumes(batch)
        counts = batch.acquired.sum(dim=1)[:, None]
        return (aligned * batch.acquired[..., None]).sum(dim=1) @ towards.to(aligned).T / counts

    return Asked(net=recipe, answer=answer, findings=names)


def detector_answers(folder: Path, *, seed: int) -> Answers:
    """The logits of a detector; redrawn are its encoders and its last layer.

    Raises:
        ValueError: the folder holds no detector.
    """
    card, net = read_card(folder), load_detector(folder)
    other = deepcopy(net)
    other.recipe = from_scratch(net.recipe, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # It starts at zero, and zero has no gradient.
        nn.init.normal_(other.head.weight, std=HEAD_DEVIATION)
    return Answers(
        trained=_logits(net),
        redrawn=_logits(other.eval()),
        sequences=card.sequences,
        loader=card.loader,
        card=card,
    )


def _logits(net: Detector) -> Asked:
    has_attention = net.settings.fusion == "cct"
    return Asked(net=net, answer=net, findings=net.findings, attention=net.attention if has_attention else None)
