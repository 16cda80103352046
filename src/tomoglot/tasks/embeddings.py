"""Every study of a split through a recipe once: arrays that the tasks score without touching the encoder again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.batches.sample import Voxels
from tomoglot.checkpoint import Loaded
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.types import Acquired, SequenceEmbeddings

Progress = Callable[[int, int], None]
Wanted = Literal["both", "features", "aligned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEmbeddings:
    """What a recipe says of n studies with c sequences and f findings.

    Attributes:
        features: pooled vectors (n, c, e), before any projection; zeros where a sequence was not acquired;
            (n, c, 0) where they were not asked for.
        aligned: unit vectors (n, c, d) in the space shared with text, or None where the recipe has no text side or
            they were not asked for.
        acquired: (n, c).
        labels: (n, f), to be read only where `labelled`.
        labelled: (n, f).
        subjects: (n,), equal numbers are one person.
        studies: the catalogue's keys.
    """

    features: NDArray[np.float32]
    aligned: NDArray[np.float32] | None
    acquired: NDArray[np.bool_]
    labels: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    subjects: NDArray[np.int64]
    studies: tuple[str, ...]
    findings: tuple[str, ...]
    sequences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Studies (n,) with at least one sequence."""
        return np.asarray(self.acquired.any(axis=1))

    def aligned_or_fail(self) -> NDArray[np.float32]:
        """The aligned vectors.

        Raises:
            ValueError: there are none.
        """
        if self.aligned is None:
            raise ValueError("these embeddings have no vectors in a space shared with text")
        return self.aligned


def embed_store(
    recipe: Recipe,
    loader: Iterable[Batch],
    *,
    wanted: Wanted = "both",
    remove_image: bool = False,
    total: int = 0,
    progress: Progress | None = None,
) -> StoreEmbeddings:
    """Embed every batch of a loader that ends (`train=False`).

    The recipe is in evaluation mode meanwhile, and in its former mode afterwards. With `remove_image` its volumes are
    zeros and what was acquired stays known: the control that shows what a score owes to anything but the image.

    Raises:
        ValueError: the loader gave no batch.
    """
    batches: list[Batch] = []
    features: list[NDArray[np.float32]] = []
    aligned: list[NDArray[np.float32]] = []
    device = next(recipe.parameters()).device
    was_training = recipe.training
    recipe.eval()
    try:
        with torch.inference_mode():
            for batch in loader:
                moved = batch.to(device)
                if remove_image:
                    moved = replace(moved, volumes=torch.zeros_like(moved.volumes))
                if wanted != "aligned":
                    features.append(recipe.encode(moved).float().cpu().numpy())
                if wanted != "features" and has_text_side(recipe):
                    aligned.append(recipe.align_volumes(moved).float().cpu().numpy())
                # Only what is small is kept: a split's volumes would not fit in memory.
                nothing = batch.volumes.new_empty(*batch.volumes.shape[:4], 0)
                batches.append(replace(batch, volumes=nothing, masks=None, tokens=None))
                if progress is not None:
                    progress(sum(map(len, batches)), total)
    finally:
        recipe.train(was_training)
    if not batches:
        raise ValueError("the loader gave no study to embed; choose a split that holds at least one")
    acquired = _stack(batches, "acquired").astype(bool)
    return StoreEmbeddings(
        features=np.concatenate(features) if features else np.zeros((*acquired.shape, 0), dtype=np.float32),
        aligned=np.concatenate(aligned) if aligned else None,
        acquired=acquired,
        labels=_stack(batches, "labels").astype(np.float32),
        labelled=_stack(batches, "labelled").astype(bool),
        subjects=_stack(batches, "subjects").astype(np.int64),
        studies=tuple(study for batch in batches for study in batch.studies),
        findings=batches[0].findings,
        sequences=batches[0].sequences,
    )


def embed_split(
    recipe: Recipe,
    store: StudySource,
    *,
    split: str | None,
    loader: LoaderConfig | None = None,
    wanted: Wanted = "both",
    remove_image: bool = False,
    progress: Progress | None = None,
) -> StoreEmbeddings:
    """Embed one split of a store, in the catalogue's order, with the sequences that the recipe reads.

    Within `embedded_once` what was embedded before is given again.

    Raises:
        ValueError: the split holds no study with any of the sequences.
    """
    settings = (loader or LoaderConfig(crop_voxels=None)).but(sequences=recipe.readable(store.sequences))
    shelf = _SHELF.get()
    key: tuple[object, ...] = ()
    if shelf is not None:
        key = (_weights_digest(recipe), settings.model_dump_json(), id(store), split, wanted, remove_image)
        if key in shelf:
            return shelf[key][1]
    batches = Loader(store, settings, split=split, train=False)
    found = embed_store(
        recipe, batches, wanted=wanted, remove_image=remove_image, total=batches.num_studies, progress=progress
    )
    if shelf is not None:
        shelf[key] = (store, found)  # The store as well: while it lives, nothing else can bear its id.
    return found


_SHELF: ContextVar[dict[tuple[object, ...], tuple[StudySource, StoreEmbeddings]] | None] = ContextVar(
    "embeddings", default=None
)


@contextmanager
def embedded_once() -> Iterator[None]:
    """Within it, `embed_split` embeds a split once for equal weights, however many shares of labels are learned from.

    Told apart by the bytes of the weights and the recipe's settings: a model that is trained on meanwhile is another.
    """
    token = _SHELF.set({})
    try:
        yield
    finally:
        _SHELF.reset(token)


def _weights_digest(recipe: Recipe) -> str:
    config = getattr(recipe, "config", None)
    said = config.model_dump_json(serialize_as_any=True) if isinstance(config, Recipe.Config) else ""
    digest = hashlib.sha256(f"{type(recipe)}{recipe.sequences}{said}".encode())
    for name, value in sorted(recipe.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # As a row: a counter without an axis cannot be looked at byte by byte.
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def study_vectors(vectors: NDArray[np.floating], used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over used sequences of vectors (n, c, d), one a study: (n, d); NaN where none is used (n, c).

    Of unit vectors: its product with a unit vector is the mean over sequences of their cosines.
    """
    count = used.sum(axis=1)[:, None]
    total = np.where(used[:, :, None], vectors, 0).astype(np.float64).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def pool_acquired(features: SequenceEmbeddings, acquired: Acquired) -> Float[Tensor, "b _twice"]:
    """The mean and the maximum over acquired sequences, side by side (b, 2e); zeros where a study has none."""
    used = acquired[:, :, None]
    mean = (features * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)
    highest = features.masked_fill(~used, -torch.inf).amax(dim=1)
    return torch.cat([mean, highest.masked_fill(~acquired.any(dim=1)[:, None], 0.0)], dim=1)


def opened(model: Recipe | Loaded, store: StudySource, loader: LoaderConfig | None) -> tuple[Recipe, LoaderConfig]:
    """The recipe, and how to load for it: whole fields, unless `loader` says otherwise.

    Labels and reports tell of whole studies, so a checkpoint that was trained on crops is shown whole fields as well.
    Fields that are smaller than the crop, or of several sizes, are read as in the training.

    Raises:
        ValueError: the store was written by another preprocessing plan than the checkpoint was trained on.
    """
    if isinstance(model, Loaded):
        refuse_other_plan(model.card.plan, store.plan)
        return model.recipe, loader or LoaderConfig(crop_voxels=_extent(model.card.crop_voxels, store))
    return model, loader or LoaderConfig()


def _extent(trained_on: Voxels | None, store: StudySource) -> Voxels | None:
    fields = {tuple(row.shape) for row in store.rows}
    if trained_on is None or len(fields) > 1:
        return trained_on
    i, j, k = (max(sizes) for sizes in zip(trained_on, *fields, strict=True))
    return i, j, k


def refuse_other_plan(trained: Plan, stored: Plan) -> None:
    """Refuse volumes prepared otherwise than those of the training; how they are compressed does not matter.

    Raises:
        ValueError: the settings that differ, with both values.
    """
    differing = [
        f"{name} {getattr(stored, name)} (the checkpoint: {getattr(trained, name)})"
        for name in Plan.model_fields
        if name not in {"codec", "chunk_voxels"} and getattr(stored, name) != getattr(trained, name)
    ]
    if differing:
        raise ValueError(
            f"the store was prepared otherwise than what the checkpoint learned from: {'; '.join(differing)}. "
            "Ingest into a new store with `tomoglot ingest SOURCE --plan-of RUN`"
        )


def seen_note(
    model: Recipe | Loaded, store: StudySource, split: str | None, loader: LoaderConfig | None = None
) -> tuple[str, ...]:
    """Say which labels were mined, how many scored subjects were trained on, and how much of a study is read.

    `loader` is how whole studies are read, which says nothing of a task that reads them in windows.
    """
    extent = () if loader is None else _extent_note(model, store, split, loader)
    return (*mined_note(store), *_held_out_note(model, store, split), *extent)


def _extent_note(
    model: Recipe | Loaded, store: StudySource, split: str | None, loader: LoaderConfig
) -> tuple[str, ...]:
    crop, trained_on = loader.crop_voxels, model.card.crop_voxels if isinstance(model, Loaded) else None
    fields = {tuple(row.shape) for row in store.rows if split is None or row.split == split}
    cut = sum(any(have > want for have, want in zip(field, crop, strict=True)) for field in fields) if crop else 0
    if crop and cut:
        return (
            f"ONLY THE MIDDLE IS READ: {_size(crop)} voxels of fields of up to {_size(max(fields))}, while labels and "
            "reports tell of whole studies.",
        )
    if trained_on and crop != trained_on:
        return (f"Read whole; the checkpoint was trained on crops of {_size(trained_on)} voxels.",)
    return ()


def _size(voxels: Sequence[int]) -> str:
    return " x ".join(map(str, voxels))


def unread_note(recipe: Recipe, store: StudySource, split: str | None, *, trained: bool = False) -> tuple[str, ...]:
    """Say which sequences of the scored studies the recipe was not built for, and what becomes of them.

    With `trained` a network is fitted on the recipe's encoders, and has none for others.
    """
    scored = Counter(name for row in store.rows if split is None or row.split == split for name in row.sequences)
    known = recipe.sequences if trained else recipe.readable(store.sequences)
    unread = [f"{name} ({count} studies)" for name, count in sorted(scored.items()) if name not in known]
    shared = [name for name in sorted(scored) if name in known and name not in recipe.sequences]
    notes = []
    if shared:
        notes.append(f"Read by the adapter that all sequences share, as no training held them: {', '.join(shared)}.")
    if unread:
        notes.append(f"NOT READ: {', '.join(unread)}; the checkpoint knows {', '.join(known)}.")
    return tuple(notes)


def mined_note(store: StudySource) -> tuple[str, ...]:
    """Say which labels of a store rules mined from reports, where there are any: no reader gave them."""
    mined = sorted({finding for row in store.rows for finding in row.labels_mined})
    if not mined:
        return ()
    studies = sum(bool(row.labels_mined) for row in store.rows)
    return (f"LABELS MINED from reports by rules, not given by a reader: {', '.join(mined)} ({studies} studies).",)


def _held_out_note(model: Recipe | Loaded, store: StudySource, split: str | None) -> tuple[str, ...]:
    if not isinstance(model, Loaded):
        return ()
    origin = model.card.origin
    began = (f"NOT SURE TO BE HELD OUT: began from {origin}; whom that was trained on is not known.",) if origin else ()
    subjects = {row.subject for row in store.rows if split is None or row.split == split}
    if not model.card.subjects:
        return began or ("NOT CHECKED TO BE HELD OUT: the checkpoint's card does not say whom it was trained on.",)
    seen = model.card.count_seen(subjects)
    if not seen:
        return began
    note = f"NOT HELD OUT: {seen} of {len(subjects)} scored subjects were in the checkpoint's training data."
    return (*began, note)


def is_simulated(store: StudySource, split: str | None) -> bool:
    """Whether any study of the split is simulated."""
    return any(row.simulated for row in store.rows if split is None or row.split == split)


def has_text_side(recipe: Recipe) -> bool:
    """Whether a recipe can be asked in words: it overrides both sides of the shared space, and was trained with it."""
    kind = type(recipe)
    both = kind.align_volumes is not Recipe.align_volumes and kind.align_texts is not Recipe.align_texts
    return both and recipe.aligned


def from_scratch(recipe: Recipe, *, seed: int) -> Recipe:
    """The same recipe with its weights as they were drawn, before any training: the control of every score.

    Raises:
        ValueError: the recipe does not keep the settings that built it.
    """
    config = getattr(recipe, "config", None)
    if not isinstance(config, Recipe.Config):
        raise ValueError(f"{type(recipe).__name__} keeps no `config`, so its from-scratch control cannot be built")
    device = next(recipe.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = config.build(recipe.sequences)
    return built.to(device).eval()


def _stack(batches: list[Batch], name: str) -> NDArray[np.generic]:
    return np.concatenate([getattr(batch, name).cpu().numpy() for batch in batches])
