"""External validation: a probe or detector that was kept, scored on the studies of another store; nothing is trained.

`transfer abnormality --out DIR` keeps one below DIR, in a folder `probe` or `detector`. It is asked for the findings
that it knows and the store labels. Calls of a detector are made at the thresholds that were chosen where it was
trained: choosing them anew would use the labels that it is scored against. Beside the score stands the same head with
the image removed; a control from scratch would have to be trained, and stands beside the score on the store of the
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import (
    Progress,
    embed_split,
    is_simulated,
    opened,
    refuse_other_plan,
    seen_note,
    unread_note,
)
from tomoglot.tasks.heads import detector
from tomoglot.tasks.heads.kept import KeptCard
from tomoglot.tasks.heads.kept_probe import LinearProbe, load_probe
from tomoglot.tasks.scores.detection_scores import Form, result_of
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.scores.scoring import Truth, read_studies, truth_of
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, TaskResult, side_of

VERB: Literal["evaluate"] = "evaluate"


class Config(Settings):
    """What is scored, and where.

    Attributes:
        head: the folder `probe` or `detector` that `transfer abnormality --out` wrote.
        split: which studies are scored; "all" takes every one, since the head has learned from none of them.
        controls: also score it with the image removed.
        seed: of the bootstrap.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole, and for a detector as in its training.
    """

    head: Path | None = None
    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Told:
    """What a head says, by arm (n, f), of the findings that both it and the store know, and what is true of them."""

    card: KeptCard
    kind: str
    said: Mapping[str, NDArray[np.float64]]
    truth: Truth
    unlabelled: tuple[str, ...]
    loader: LoaderConfig
    form: Form = "multi_label"
    thresholds: Mapping[str, float] | None = None


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Score the kept head on the studies of the split, without training or choosing anything.

    Raises:
        ValueError: no head, one of another checkpoint or of another preprocessing plan, or one that knows no finding
            that the store labels.
    """
    if config.head is None:
        raise ValueError(
            "external needs a head: --set head=FOLDER, the folder `probe` or `detector` that `tomoglot transfer "
            "abnormality --out DIR` wrote below DIR"
        )
    recipe, settings = opened(model, store, config.loader)
    if (config.head / detector.CARD).is_file():
        told = _ask_detector(config.head, recipe, store, config)
    else:
        probe = load_probe(config.head)
        told = _ask_probe(probe, model, store, config, settings=settings, progress=progress)
    split = side_of(config.split)
    result = result_of(
        told.said,
        told.truth,
        task=f"external-{told.kind}",
        form=told.form,
        thresholds=None if told.thresholds is None else dict.fromkeys(told.said, told.thresholds),
        draws=config.draws,
        seed=config.seed,
    )
    unread = unread_note(recipe, store, split, trained=told.kind == "detector")
    return result.under(config).but(
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, split),
        notes=(*seen_note(model, store, split, told.loader), *unread, *result.notes, *_notes(told, store, split)),
    )


def _ask_probe(
    probe: LinearProbe,
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    settings: LoaderConfig,
    progress: Progress | None,
) -> _Told:
    card, recipe = probe.card, model.recipe if isinstance(model, Loaded) else model
    refuse_other_plan(card.plan, store.plan)
    if isinstance(model, Loaded) and card.encoder != model.card.weights_digest:
        raise ValueError("the probe was fitted on the features of another checkpoint; give --from that one")
    asked, unlabelled = _in_common(card.findings, store)
    at = [card.findings.index(name) for name in asked]
    said = {}
    for arm in (MODEL, IMAGE_REMOVED)[: 1 + config.controls]:
        seen = embed_split(
            recipe,
            store,
            split=side_of(config.split),
            loader=settings,
            wanted="features",
            remove_image=arm == IMAGE_REMOVED,
            progress=progress,
        )
        said[arm], truth = probe.predict(seen)[:, at], truth_of(seen).columns(asked)
    return _Told(card=card, kind="probe", said=said, truth=truth, unlabelled=unlabelled, loader=settings)


def _ask_detector(folder: Path, recipe: Recipe, store: StudySource, config: Config) -> _Told:
    card, net = detector.read_card(folder), detector.load_detector(folder)
    refuse_other_plan(card.plan, store.plan)
    if (card.recipe, card.sequences) != (getattr(recipe, "config", card.recipe), recipe.sequences):
        raise ValueError("the detector was fine-tuned from a checkpoint of another make; give --from that one")
    one_of = card.settings.form == "one_of"
    asked, unlabelled = _in_common(card.findings, store)
    if one_of and unlabelled:
        raise ValueError(
            f"the detector tells {', '.join(card.findings)} from one another, and the store does not label "
            f"{', '.join(unlabelled)}: what is none of the others cannot be known"
        )
    loader = (config.loader or card.loader).but(sequences=card.sequences)
    at = [card.findings.index(name) for name in asked]
    said = {}
    for arm in (MODEL, IMAGE_REMOVED)[: 1 + config.controls]:
        batches = Loader(store, loader, split=side_of(config.split), train=False, findings=asked)
        given, truth = read_studies(
            batches, lambda batch: net.probabilities(net(batch)), findings=asked, blind=arm == IMAGE_REMOVED
        )
        said[arm] = given[:, at]
    return _Told(
        card=card,
        kind="detector",
        said=said,
        truth=truth,
        unlabelled=unlabelled,
        loader=loader,
        form=card.settings.form,
        thresholds=None if one_of else card.thresholds,
    )


def _in_common(known: tuple[str, ...], store: StudySource) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The findings that are asked, and those that the head knows and the store does not label."""
    asked = tuple(name for name in known if name in store.findings)
    if not asked:
        raise ValueError(
            f"the head knows {', '.join(known)}; the store labels {', '.join(store.findings) or 'no finding'}: there "
            "is nothing to score"
        )
    return asked, tuple(name for name in known if name not in store.findings)


def _notes(told: _Told, store: StudySource, split: str | None) -> tuple[str, ...]:
    subjects = {row.subject for row in store.rows if split is None or row.split == split}
    seen, notes = told.card.count_seen(subjects), ["Nothing was trained or chosen on this store."]
    if seen:
        notes.append(f"NOT HELD OUT: the {told.kind} learned from {seen} of the {len(subjects)} subjects.")
    if told.unlabelled:
        notes.append(f"Not labelled here, so not asked: {', '.join(told.unlabelled)}.")
    if told.thresholds:
        notes.append("Balanced accuracy and F1 at the thresholds of the training's val split.")
    return tuple(notes)
