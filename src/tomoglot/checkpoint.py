"""A checkpoint is a folder: weights, the card that says what they are, and what is needed to go on.

    checkpoints/00001000/weights.safetensors     the weights to use
                         card.json               recipe, plan, data, step: enough to rebuild and to refuse misuse
                         resume/optimiser.pt     state of the optimiser
                         resume/state.json       random states, loader position
                         resume/weights.safetensors   only where the weights to use are a moving average

It is written beside its place and renamed into it, so a folder with a step for a name is always complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import SerializeAsAny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.studies.atomic import flush, flush_tree

RESEARCH_USE = "Research use only: not a medical device, not for diagnosis or for any decision about a person."


class Card(Settings):
    """What a checkpoint is, and what it was made from.

    `subjects` are salted, slow digests of the trained subjects' pseudonyms: they let a later stage find a leak
    (`count_seen`) without carrying the pseudonyms themselves. The salt stands beside them, so whoever holds the card
    can test a guess, as the leak check does; the slow digest only makes it dear. It hides a pseudonym that is hard to
    guess (random, or keyed by a secret), and does not hide `sub-0001`: all of a cohort's running numbers are tried in
    a minute. To publish a card beyond those who may know who was in the data, leave them out,
    ``card.but(subjects=())``; the scores of such a checkpoint then say that nobody could check.

    `origin` says which released file the weights are of; then nothing is known of their subjects.
    """

    format: Literal[1, 2] = 2
    tomoglot: str
    recipe: SerializeAsAny[Recipe.Config]
    plan: Plan
    crop_voxels: tuple[int, int, int] | None
    sequences: tuple[str, ...]
    store_digest: str
    split_digest: str
    step: int
    steps: int
    simulated: bool
    weights: Literal["last", "average"] = "last"
    weights_digest: str = ""
    salt: str
    subjects: tuple[str, ...]
    origin: str = ""
    use: str = RESEARCH_USE

    def saw(self, subject: str) -> bool:
        """Whether this subject (a pseudonym) was in the training data."""
        return self.count_seen([subject]) == 1

    def count_seen(self, subjects: Iterable[str]) -> int:
        """How many of these subjects (pseudonyms) were in the training data."""
        if self.format == 1:
            asked = {_fast_digest(subject, self.salt) for subject in subjects}
        else:
            asked = set(subject_digests(subjects, self.salt))
        return len(asked & set(self.subjects))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint ready for use: the recipe in evaluation mode, on the CPU."""

    recipe: Recipe
    card: Card
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What is needed to go on exactly: raw weights, moving average, optimiser state and the small state."""

    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None
    optimiser: dict[str, Any]
    state: dict[str, Any]


@lru_cache(maxsize=1 << 16)
def subject_digest(subject: str, salt: str) -> str:
    """Salted digest of a subject's pseudonym, by scrypt: 1 MiB of memory and 3 to 6 ms (measured) for each guess."""
    return hashlib.scrypt(subject.encode(), salt=salt.encode(), n=1024, r=8, p=1, dklen=12).hex()


def subject_digests(subjects: Iterable[str], salt: str) -> tuple[str, ...]:
    """Sorted salted digests, one a subject. Ten thousand: 19 s on two busy cores."""
    # Threads suffice: scrypt lets go of the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(sorted(pool.map(partial(subject_digest, salt=salt), sorted(set(subjects)))))


def _fast_digest(subject: str, salt: str) -> str:
    """That of cards of format 1."""
    return hashlib.sha256(f"{salt}\0{subject}".encode()).hexdigest()[:24]


def save_checkpoint(
    run: Path, module: nn.Module, card: Card, *, resume: Resume | None, keep_last: int | None = None
) -> Path:
    """Write ``checkpoints/<step>`` whole or not at all, then drop all but the `keep_last` newest.

    `resume.weights` are not read (the module has them); None for weights that no run will go on from. Returns the
    folder; one that exists already is left alone.
    """
    place = run / "checkpoints" / f"{card.step:08d}"
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    for stale in place.parent.glob(".*"):
        shutil.rmtree(stale)
    temporary = place.parent / f".{place.name}.writing"
    temporary.mkdir(parents=True)
    state = _on_cpu(module.state_dict())
    average = {} if resume is None or resume.average is None else _on_cpu(resume.average)
    save_file({**state, **average}, temporary / "weights.safetensors")
    if resume is not None:
        _save_resume(temporary / "resume", resume, state if average else {})
    card = card.but(
        weights="average" if average else "last",
        weights_digest=_file_digest(temporary / "weights.safetensors"),
    )
    (temporary / "card.json").write_text(card.to_json(), encoding="utf-8")
    flush_tree(temporary)
    temporary.replace(place)
    flush(place.parent)
    if keep_last is not None:
        for old in _complete(run)[:-keep_last]:
            # Renamed first: a folder half removed must not look like a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.removing")))
    return place


def _save_resume(folder: Path, resume: Resume, raw: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    if raw:
        save_file(dict(raw), folder / "weights.safetensors")
    torch.save(resume.optimiser, folder / "optimiser.pt")
    (folder / "state.json").write_text(json.dumps(resume.state), encoding="utf-8")


def latest(run: Path) -> Path | None:
    """The complete checkpoint with the highest step of a run folder, or None."""
    complete = _complete(run)
    return complete[-1] if complete else None


def load_checkpoint(path: Path) -> Loaded:
    """Rebuild the recipe of a run folder (its latest checkpoint) or of one checkpoint folder.

    Raises:
        ValueError: there is no checkpoint, the weights are not those the card was written for, or do not fit.
    """
    folder = path if (path / "card.json").is_file() else latest(path)
    if folder is None:
        raise ValueError(f"{path.name}: no checkpoint here; give a run folder or one folder below its checkpoints/")
    card = Card.load(folder / "card.json")
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise ValueError(f"checkpoint {folder.name}: weights.safetensors is missing; copy the whole folder again")
    if _file_digest(weights) != card.weights_digest:
        raise ValueError(
            f"checkpoint {folder.name}: weights.safetensors is not the file that card.json was written for "
            "(digests differ); copy the whole folder again"
        )
    recipe = card.recipe.build(card.sequences)
    try:
        recipe.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"checkpoint {folder.name} does not fit the recipe its card names (written by tomoglot {card.tomoglot}): "
            f"{error}"
        ) from error
    return Loaded(recipe.eval(), card, folder)


def read_resume(folder: Path, device: torch.device | str = "cpu") -> Resume:
    """Read what is needed to go on; nothing in the files is ever executed.

    Raises:
        ValueError: the checkpoint was stripped of its resume folder, or a file in it is damaged.
    """
    inner = folder / "resume"
    try:
        used = load_file(folder / "weights.safetensors", device=str(device))
        averaged = (inner / "weights.safetensors").is_file()
        weights = load_file(inner / "weights.safetensors", device=str(device)) if averaged else used
        optimiser = torch.load(inner / "optimiser.pt", map_location=device, weights_only=True)
        state = json.loads((inner / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {folder.name} cannot be resumed ({type(error).__name__}); remove it to go on from an older one"
        ) from error
    return Resume(weights=weights, average=used if averaged else None, optimiser=optimiser, state=state)


def _complete(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(one for one in found if re.fullmatch(r"\d{8,}", one.name) and (one / "card.json").is_file())


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Cloned: tied weights share memory, which the format refuses.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
