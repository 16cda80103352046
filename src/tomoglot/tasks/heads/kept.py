"""A trained network as a folder: `weights.safetensors`, and a card that says what it reads and whom it learned from.

What is the same of every network that a task keeps. Each file is written whole or not at all, and nothing in them is
ever executed. Subjects stand on the card as salted digests, as on a checkpoint's.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from tomoglot.checkpoint import RESEARCH_USE, subject_digests
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.studies.atomic import write_bytes

WEIGHTS = "weights.safetensors"


class KeptCard(Settings):
    """What the card of every kept network says."""

    format: Literal[1] = 1
    plan: Plan
    simulated: bool
    salt: str
    subjects: tuple[str, ...]
    use: str = RESEARCH_USE

    def count_seen(self, subjects: set[str]) -> int:
        """How many of these subjects (pseudonyms) the network, or one that it goes on from, learned from."""
        return len(set(subject_digests(subjects, self.salt)) & set(self.subjects))


Card = TypeVar("Card", bound=KeptCard)


def account_of(learned_from: set[str], before: KeptCard | None = None) -> dict[str, Any]:
    """`salt` and `subjects` of a card; those of the network `before`, from which this one goes on, stay on it."""
    salt = secrets.token_hex(8) if before is None else before.salt
    earlier = set() if before is None else set(before.subjects)
    return {"salt": salt, "subjects": tuple(sorted(earlier | set(subject_digests(learned_from, salt))))}


def settings_of(recipe: Recipe, what: str) -> Recipe.Config:
    """The settings that built a recipe, for the card of a network around it.

    Raises:
        ValueError: the recipe does not keep them.
    """
    config = getattr(recipe, "config", None)
    if not isinstance(config, Recipe.Config):
        raise ValueError(f"{type(recipe).__name__} keeps no `config`, so a {what} around it cannot be saved")
    return config


def write_kept(folder: Path, file: str, card: KeptCard, net: nn.Module) -> Path:
    """Write weights, then the card under this name; returns the folder."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state))
    write_bytes(folder / file, card.to_json().encode())
    return folder


def read_kept(folder: Path, file: str, kind: type[Card], *, hint: str) -> Card:
    """The card of this name in a folder; `hint` says where such a folder comes from.

    Raises:
        ValueError: there is none.
    """
    if not (folder / file).is_file():
        raise ValueError(f"{folder.name}: no {file} here; give {hint}")
    return kind.load(folder / file)


def load_weights_kept(folder: Path, net: nn.Module, *, what: str, fit: str) -> None:
    """Load a folder's weights into a network of the same make; `what` it is, and to what they must `fit`.

    Raises:
        ValueError: they are not there, do not fit, or hold values that are not finite.
    """
    try:
        state = load((folder / WEIGHTS).read_bytes())
        net.load_state_dict(state, strict=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{what} {folder.name}: its weights do not fit {fit} ({type(error).__name__})") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise ValueError(f"{what} {folder.name}: its weights hold values that are not finite")
