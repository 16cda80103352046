"""Retrieval: the volume of a report, the report of a volume, and volumes like a volume.

Nothing is trained. A report is its findings and impression; a study's vector is the mean over its acquired sequences
of their unit vectors, as in zero-shot. Two reconstructions of one scan, which share a report, are one item; subjects
whose reports have the very same words are all right answers to them. Volumes are like each other if they have the same
findings, or share one; a subject's own studies are never an answer. Beside the scores stand chance, the recipe from
scratch, and the recipe with its image removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tomoglot.batches.loader import LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import (
    Progress,
    StoreEmbeddings,
    embed_split,
    from_scratch,
    has_text_side,
    is_simulated,
    opened,
    seen_note,
    unread_note,
)
from tomoglot.tasks.queries.searches import Direction, Items, build_searches, embed_texts, list_items
from tomoglot.tasks.scores.intervals import DRAWS, PairedTest, Statistic, paired_test
from tomoglot.tasks.scores.ranks import MAP, RANK, Ranks, Search, rank, weighted_median
from tomoglot.tasks.scores.regions import mean_statistic
from tomoglot.tasks.scores.scoring import holm_comparisons, score_statistics, truth_of
from tomoglot.tasks.task import (
    IMAGE_REMOVED,
    MODEL,
    SCRATCH,
    Prediction,
    Score,
    TaskResult,
    side_of,
)

VERB: Literal["evaluate"] = "evaluate"
CHANCE = "chance"
COMPARED = ("r@10", MAP)


class Config(Settings):
    """What to look for, and among how many.

    Attributes:
        split: which studies; "all" for every one.
        controls: also score the recipe from scratch, and with its image removed.
        seed: of the bootstrap, of the pools and of the from-scratch weights.
        directions: None for all that the recipe and the store allow.
        pool: look among random pools of so many answers, so that cohorts of different sizes can be compared; None
            looks among all of the split.
        rounds: with a pool, how often the answers are cut into pools; a query's measures are means over the rounds.
        volumes: vectors of volume to volume: the encoder's `features` (any recipe; each sequence standardised over
            the split), or those of the space `shared` with text.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    directions: tuple[Direction, ...] | None = Field(None, min_length=1)
    pool: int | None = Field(None, ge=2)
    rounds: int = Field(10, ge=1)
    volumes: Literal["features", "shared"] = "features"
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Search the studies of a split by their reports, their reports by them, and them by each other.

    Nothing is written into `out`.

    Raises:
        ValueError: a direction that the recipe or the store does not allow, nothing that could be looked for, a split
            without studies, or a pool larger than the split.
    """
    recipe, settings = opened(model, store, config.loader)
    split = side_of(config.split)
    asked = _directions(recipe, store, config)

    def embed(subject: Recipe, *, remove_image: bool = False) -> StoreEmbeddings:
        return embed_split(subject, store, split=split, loader=settings, remove_image=remove_image, progress=progress)

    ours = embed(recipe)
    reports = {row.key: row.report for row in store.rows}
    items = list_items([reports[study] for study in ours.studies], ours.subjects)
    texts = items.texts if set(asked) != {"volume_to_volume"} else ()
    arms = {MODEL: (ours, embed_texts(recipe, texts))}
    if config.controls:
        scratch = from_scratch(recipe, seed=config.seed)
        arms[SCRATCH] = embed(scratch), embed_texts(scratch, texts)
        arms[IMAGE_REMOVED] = embed(recipe, remove_image=True), arms[MODEL][1]
    result = retrieval_result(arms, items, config, directions=asked)
    return result.under(config).but(
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, split),
        notes=(*seen_note(model, store, split, settings), *unread_note(recipe, store, split), *result.notes),
    )


def retrieval_result(
    arms: Mapping[str, tuple[StoreEmbeddings, NDArray[np.float64]]],
    items: Items,
    config: Config,
    *,
    directions: Sequence[Direction],
) -> TaskResult:
    """Score arms, each the embedded studies and the vectors of `items.texts`; every arm has the same studies.

    Raises:
        ValueError: nothing could be looked for, or there are fewer answers than a pool should have.
    """
    ours = arms[MODEL][0]
    searches: dict[str, dict[str, Search]] = {}
    for arm, (embeddings, texts) in arms.items():
        for search in build_searches(embeddings, texts, items, directions=directions, space=config.volumes):
            searches.setdefault(search.name, {})[arm] = search
    scores: list[Score] = []
    tests = []
    notes = [*_item_notes(items, config)]
    measured: dict[str, Ranks] = {}
    for name, by_arm in searches.items():
        blank = replace(by_arm[MODEL], queries=np.zeros_like(by_arm[MODEL].queries))
        ranks = {
            arm: rank(search, pool=config.pool, rounds=config.rounds, seed=config.seed)
            for arm, search in {**by_arm, CHANCE: blank}.items()
        }
        kept = np.isfinite(ranks[MODEL].share)
        notes.append(_search_note(by_arm[MODEL], kept, ranks[CHANCE], config))
        if not kept.any():
            continue
        measured[name] = ranks[MODEL]
        subjects = by_arm[MODEL].subjects[kept]
        add = partial(
            score_statistics,
            name,
            subjects=subjects,
            prevalence=float(ranks[MODEL].share[kept].mean()),
            draws=config.draws,
            seed=config.seed,
        )
        for arm, found in ranks.items():
            scores += add(_statistics(found, kept), arm=arm)
        tests += [(name, *test) for test in _tests(ranks, kept, subjects, config)]
    if not scores:
        raise ValueError(f"nothing could be looked for: {' '.join(notes)}")
    return TaskResult(
        task="retrieval",
        split="",
        subjects=len(np.unique(ours.subjects)),
        studies=len(ours),
        scores=tuple(scores),
        comparisons=holm_comparisons(tests),
        notes=tuple(notes),
        predictions=_predictions(ours, items, searches, measured),
    )


def _directions(recipe: Recipe, store: StudySource, config: Config) -> tuple[Direction, ...]:
    """The directions asked for, or all that can be.

    Raises:
        ValueError: one cannot be, or none can; it is said which can.
    """
    rows = [row for row in store.rows if config.split in ("all", row.split)]
    by_text: tuple[Direction, ...] = ("report_to_volume", "volume_to_report")
    lacks: dict[Direction, str] = {}
    if not has_text_side(recipe):
        lacks |= dict.fromkeys(by_text, f"{type(recipe).__name__} has no text side")
    elif rows and not any(row.report for row in rows):
        lacks |= dict.fromkeys(by_text, "no study of the split has a report (give `tomoglot ingest` --reports)")
    if rows and not any(row.labels for row in rows):
        lacks["volume_to_volume"] = "no study of the split has a labelled finding, which says what is alike"
    every: tuple[Direction, ...] = (*by_text, "volume_to_volume")
    possible = tuple(direction for direction in every if direction not in lacks)
    refused = {name: lacks[name] for name in config.directions or (() if possible else every) if name in lacks}
    if refused:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"cannot be looked for: {why}. Possible here: {', '.join(possible) or 'none'}")
    if config.volumes == "shared" and not has_text_side(recipe):
        raise ValueError(f"{type(recipe).__name__} has no space shared with text; set volumes=features")
    return config.directions or possible


def _statistics(found: Ranks, kept: NDArray[np.bool_]) -> dict[str, Statistic]:
    return {
        measure: weighted_median(found.column(measure)[kept])
        if measure == RANK
        else mean_statistic(found.column(measure)[kept][:, None])
        for measure in found.measures
    }


def _tests(
    ranks: Mapping[str, Ranks], kept: NDArray[np.bool_], subjects: NDArray[np.int64], config: Config
) -> list[tuple[str, str, int, PairedTest]]:
    """The model minus each control, on the same drawn subjects."""
    ours = _statistics(ranks[MODEL], kept)
    people = len(np.unique(subjects))
    return [
        (
            measure,
            arm,
            people,
            paired_test(
                ours[measure], _statistics(found, kept)[measure], subjects, draws=config.draws, seed=config.seed
            ),
        )
        for arm, found in ranks.items()
        if arm not in (MODEL, CHANCE)
        for measure in COMPARED
        if measure in ours
    ]


def _item_notes(items: Items, config: Config) -> list[str]:
    told = items.told
    _, times = np.unique(items.text[told], return_counts=True)
    notes = [
        f"{len(told)} studies with a report, {len(times)} reports that differ: {times[times > 1].sum()} studies have "
        f"the words of another subject's report exactly, and all are right answers. Left out: {items.doubled} "
        "studies that share the report of another of their own subject (one scan, reconstructed again). Without a "
        f"report: {len(items.rows) - len(told)}.",
        "Intervals: the subjects whose queries these are were drawn; the answers stayed as they are.",
        "Ties count as their mean over all orders.",
    ]
    if config.pool is not None:
        cuts = f"cut {config.rounds} times (seed {config.seed})"
        notes.append(f"Random pools of {config.pool} answers, each query's own among them, {cuts}.")
    return notes


def _search_note(search: Search, kept: NDArray[np.bool_], chance: Ranks, config: Config) -> str:
    """The size of the pool, and what chance would reach."""
    size = config.pool or len(search.answers)
    shown = ", ".join(
        f"{measure} {chance.column(measure)[kept].mean():.3f}" for measure in chance.measures if measure != RANK
    )
    left = int((~kept).sum())
    rest = f"; {left} queries without a right answer were left out" if left else ""
    apart = "" if search.owners is None else ", never of the same subject"
    return f"{search.name}: {int(kept.sum())} queries, pool of {size}{apart}; chance: {shown or 'none'}{rest}."


def _predictions(
    ours: StoreEmbeddings,
    items: Items,
    searches: Mapping[str, Mapping[str, Search]],
    measured: Mapping[str, Ranks],
) -> tuple[Prediction, ...]:
    """Of every study's queries the rank of the first right answer, and what else is measured of it."""
    truth = truth_of(ours)
    labelled = items.rows[np.flatnonzero(ours.labelled[items.rows].any(axis=1))]
    measures: dict[int, dict[str, float]] = {int(row): {} for row in items.rows}
    for name, found in measured.items():
        rows = labelled if searches[name][MODEL].owners is not None else items.rows[items.told]
        for row, values in zip(rows.tolist(), found.values.tolist(), strict=True):
            if np.isfinite(values).all():
                # A median is of many queries; one has a rank.
                titles = ("rank" if measure == RANK else measure for measure in found.measures)
                measures[row] |= {f"{name}/{its}": value for its, value in zip(titles, values, strict=True)}
    return tuple(
        Prediction(
            study=ours.studies[row],
            probabilities={},
            labels={
                name: float(truth.labels[row, at]) for at, name in enumerate(truth.findings) if truth.labelled[row, at]
            },
            measures=its,
        )
        for row, its in measures.items()
    )
