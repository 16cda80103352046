"""Zero-shot: findings asked in words of a recipe that was trained on reports, and never on the findings' labels.

The score of a study is, over its acquired sequences, the mean of the similarity to the sentences for the finding less
the mean similarity to those against it, divided by a temperature; its sigmoid is printed as a probability, and is not
calibrated. What stands against a finding is either its denial, or what else might be there (`Config.against`). Beside
the score stand the same recipe from scratch, the recipe with its image removed, every subset of the sequences, and how
far single wordings lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
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
    study_vectors,
    unread_note,
)
from tomoglot.tasks.queries.prompts import PROMPTS, Prompts, prompts_for, read_prompts
from tomoglot.tasks.scores.intervals import DRAWS, draw_subjects, macro_auroc, over_draws, percentile_interval
from tomoglot.tasks.scores.metrics import auroc
from tomoglot.tasks.scores.scoring import (
    compare_with_controls,
    list_predictions,
    macro_score,
    score_arm,
    score_macro,
    truth_of,
    unscored_note,
)
from tomoglot.tasks.task import IMAGE_REMOVED, MACRO, SCRATCH, Score, Spread, SubsetScore, TaskResult, side_of

VERB: Literal["evaluate"] = "evaluate"
TEMPERATURE = 0.1
# All non-empty subsets of seven sequences.
SUBSET_LIMIT = 127
SUBSET_DRAWS = 1000
Against = Literal["absent", "others"]


class Config(Settings):
    """How to ask.

    Attributes:
        split: which studies; "all" for every one.
        controls: also score the recipe from scratch, and with its image removed.
        seed: of the bootstrap and of the from-scratch weights.
        prompts: a JSON file of prompts by finding; None takes the packaged ones.
        against: the negative prompts. "absent": the sentences that deny the finding. "others": the sentences for the
            other findings asked, since a sentence encoder hardly hears a negation: in the packaged one "there is
            midline shift" and "there is no midline shift" have a cosine of 0.87. Whole reports of simulated studies,
            no image in play, are ranked with a macro-AUROC of 0.80 by the first and 0.92 by the second
            (results/tuning.md). The macro score of the way that was not chosen is printed as well.
        temperature: what similarities are divided by before the sigmoid.
        subset_limit: at most so many subsets of the sequences are scored.
        draws: of the bootstrap.
        loader: how studies are read; None reads them whole.
    """

    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    prompts: Path | None = None
    against: Against = "others"
    temperature: float = Field(TEMPERATURE, gt=0)
    subset_limit: int = Field(SUBSET_LIMIT, ge=1)
    draws: int = Field(DRAWS, ge=1)
    loader: LoaderConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptVectors:
    """Unit vectors of the sentences of one finding: for its presence (m, d) and for its absence (n, d)."""

    present: NDArray[np.float32]
    absent: NDArray[np.float32]

    @property
    def direction(self) -> NDArray[np.float32]:
        """Mean of the sentences for, less the mean of those against: the ensemble is made in the shared space."""
        return np.asarray(self.present.mean(axis=0) - self.absent.mean(axis=0))


def against_others(vectors: Mapping[str, PromptVectors]) -> dict[str, PromptVectors]:
    """Let what else might be there stand against each finding; one finding alone keeps its denial."""
    return {
        finding: PromptVectors(
            present=vector.present,
            absent=np.concatenate([other.present for name, other in vectors.items() if name != finding])
            if len(vectors) > 1
            else vector.absent,
        )
        for finding, vector in vectors.items()
    }


def embed_prompts(recipe: Recipe, prompts: Mapping[str, Prompts]) -> dict[str, PromptVectors]:
    """Every sentence through the recipe's text side."""
    was_training = recipe.training
    recipe.eval()
    try:
        with torch.inference_mode():
            return {
                finding: PromptVectors(
                    present=recipe.align_texts(list(question.present)).float().cpu().numpy(),
                    absent=recipe.align_texts(list(question.absent)).float().cpu().numpy(),
                )
                for finding, question in prompts.items()
            }
    finally:
        recipe.train(was_training)


def study_scores(
    aligned: NDArray[np.floating], used: NDArray[np.bool_], directions: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Mean over used sequences of the similarity for less the similarity against: (n, f); NaN where none is used.

    `aligned` is (n, c, d), `used` (n, c), `directions` (f, d).
    """
    return np.asarray(study_vectors(aligned, used) @ directions.astype(np.float64).T)


def probabilities(scores: NDArray[np.floating], *, temperature: float = TEMPERATURE) -> NDArray[np.float64]:
    """Sigmoid of the scores over the temperature."""
    return np.asarray(1 / (1 + np.exp(-np.clip(scores / temperature, -50, 50))))


def sequence_subsets(sequences: Sequence[str], *, limit: int = SUBSET_LIMIT) -> list[tuple[str, ...]]:
    """Non-empty subsets, small ones first; where there are more than `limit`, the last one kept is the full set."""
    subsets = [subset for size in range(1, len(sequences) + 1) for subset in combinations(sequences, size)]
    return subsets if len(subsets) <= limit else [*subsets[: limit - 1], tuple(sequences)]


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Ask a recipe (or a checkpoint) for every finding that a store labels and that there are prompts for.

    Nothing is written into `out`.

    Raises:
        ValueError: the recipe has no text side, no finding has prompts, or the split is empty.
    """
    recipe, settings = opened(model, store, config.loader)
    split = side_of(config.split)
    if not has_text_side(recipe):
        raise ValueError(f"{type(recipe).__name__} has no text side, so nothing can be asked in words; try a probe")
    wanted = questions(store.findings, config.prompts)

    def embed(subject: Recipe, *, remove_image: bool = False) -> StoreEmbeddings:
        return embed_split(
            subject,
            store,
            split=split,
            loader=settings,
            wanted="aligned",
            remove_image=remove_image,
            progress=progress,
        )

    others: dict[str, tuple[StoreEmbeddings, dict[str, PromptVectors]]] = {}
    vectors = embed_prompts(recipe, wanted)
    ours = embed(recipe)
    if config.controls:
        scratch = from_scratch(recipe, seed=config.seed)
        others[SCRATCH] = embed(scratch), embed_prompts(scratch, wanted)
        others[IMAGE_REMOVED] = embed(recipe, remove_image=True), vectors
    result = zero_shot_result(
        ours,
        vectors,
        controls=others,
        against=config.against,
        temperature=config.temperature,
        subset_limit=config.subset_limit,
        draws=config.draws,
        seed=config.seed,
    )
    return result.under(config).but(
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, split),
        notes=(*seen_note(model, store, split, settings), *unread_note(recipe, store, split), *result.notes),
    )


def zero_shot_result(
    ours: StoreEmbeddings,
    vectors: Mapping[str, PromptVectors],
    *,
    controls: Mapping[str, tuple[StoreEmbeddings, Mapping[str, PromptVectors]]] | None = None,
    against: Against = "absent",
    temperature: float = TEMPERATURE,
    subset_limit: int = SUBSET_LIMIT,
    draws: int = DRAWS,
    seed: int = 0,
) -> TaskResult:
    """Score embeddings against prompt vectors; every array of a control has the model's order of studies."""
    seen = ours.seen
    truth = truth_of(ours).columns(tuple(vectors)).rows(seen)
    ways: dict[Against, Mapping[str, PromptVectors]] = {"absent": vectors, "others": against_others(vectors)}
    vectors = ways.pop(against)
    if against == "others":
        controls = {name: (given, against_others(other)) for name, (given, other) in (controls or {}).items()}
    scores = _scores(ours, vectors)[seen]
    given = probabilities(scores, temperature=temperature)
    arms = {name: _scores(*other)[seen] for name, other in (controls or {}).items()}
    metrics = ("auroc", "average_precision", "brier", "calibration_error")
    table = score_arm(given, truth, metrics=metrics, draws=draws, seed=seed)
    for name, other in arms.items():
        table += score_arm(other, truth, arm=name, draws=draws, seed=seed)
    for way, other_vectors in ways.items():
        row = score_macro(_scores(ours, other_vectors)[seen], truth, draws=draws, seed=seed)
        table += [] if row is None else [row.but(name=f"{MACRO}, against {way}")]
    subsets, summary, notes = score_subsets(
        ours, vectors, limit=subset_limit, draws=min(draws, SUBSET_DRAWS), seed=seed
    )
    return TaskResult(
        task="zero_shot",
        split="",
        subjects=len(np.unique(truth.subjects)),
        studies=len(truth.studies),
        scores=(*table, *summary),
        # Ranks decide an AUROC, so scores are compared as they are: a sigmoid could make ties of large ones.
        comparisons=compare_with_controls(scores, arms, truth, draws=draws, seed=seed),
        subsets=subsets,
        spreads=prompt_spread(ours, vectors),
        notes=(
            *unscored_note(truth),
            f"Negative prompts: {against}.",
            "Probabilities are sigmoids of similarities, not calibrated.",
            *notes,
        ),
        predictions=list_predictions(given, truth),
    )


def score_subsets(
    ours: StoreEmbeddings,
    vectors: Mapping[str, PromptVectors],
    *,
    limit: int = SUBSET_LIMIT,
    draws: int = SUBSET_DRAWS,
    seed: int = 0,
) -> tuple[tuple[SubsetScore, ...], list[Score], tuple[str, ...]]:
    """Macro AUROC of every subset of the sequences, and their mean over subsets as a score with its own interval.

    A study that has none of a subset's sequences is left out of that subset, and counted. Subsets share the drawn
    subjects, so the mean over subsets is taken within each draw.
    """
    truth = truth_of(ours).columns(tuple(vectors))
    weights = draw_subjects(truth.subjects, draws=draws, seed=seed)
    directions = np.stack([vector.direction for vector in vectors.values()])
    rows: list[SubsetScore] = []
    drawn: list[NDArray[np.float64]] = []
    for subset in sequence_subsets(ours.sequences, limit=limit):
        used = ours.acquired & np.isin(ours.sequences, subset)
        keep = np.asarray(used.any(axis=1))
        if not keep.any():
            continue
        part = truth.rows(keep)
        scores = study_scores(ours.aligned_or_fail()[keep], used[keep], directions)
        statistic = macro_auroc(scores, part.labels, part.labelled)
        sampled = over_draws(statistic, weights[:, keep])
        bounds = percentile_interval(float(statistic(np.ones((1, len(part.studies))))[0]), sampled)
        if bounds.draws == 0:
            continue
        rows.append(SubsetScore(sequences=subset, score=macro_score(bounds, part), left_out=int((~keep).sum())))
        drawn.append(sampled)
    if not rows:
        return (), [], ()
    bounds = percentile_interval(float(np.mean([row.score.value for row in rows])), np.mean(drawn, axis=0))
    seen = truth.rows(ours.seen)
    name = f"{MACRO}, mean over {len(rows)} subsets"
    summary = [macro_score(bounds, seen).but(name=name)] if bounds.draws else []
    order = sorted(rows, key=lambda row: row.score.value)
    note = "; ".join(
        f"{word} {'+'.join(row.sequences)} {row.score}" for word, row in (("worst", order[0]), ("best", order[-1]))
    )
    return tuple(rows), summary, (f"Subsets of sequences (worst and best are picked after the fact): {note}.",)


def prompt_spread(ours: StoreEmbeddings, vectors: Mapping[str, PromptVectors]) -> tuple[Spread, ...]:
    """Lowest and highest AUROC over single pairs of a sentence for and a sentence against, a finding at a time."""
    truth = truth_of(ours)
    spreads = []
    for finding, vector in vectors.items():
        at = truth.findings.index(finding)
        rows = truth.labelled[:, at] & ours.seen
        pairs = np.stack([present - absent for present, absent in product(vector.present, vector.absent)])
        scores = study_scores(ours.aligned_or_fail()[rows], ours.acquired[rows], pairs)
        values = [float(auroc(scores[:, pair], truth.labels[rows, at])[0]) for pair in range(len(pairs))]
        if np.isfinite(values).all():
            spreads.append(Spread(name=finding, low=min(values), high=max(values), pairs=len(values)))
    return tuple(spreads)


def questions(findings: Sequence[str], prompts: Path | None) -> dict[str, Prompts]:
    """Sentences for the findings of a store that there are any for; from a file instead of our own, if it is given.

    Raises:
        ValueError: there are none.
    """
    known = prompts_for(findings) or dict(PROMPTS) if prompts is None else read_prompts(prompts)
    asked = {finding: known[finding] for finding in findings if finding in known}
    if not asked:
        labelled = ", ".join(findings) or "none"
        raise ValueError(
            f"no finding of the store has prompts: the store labels {labelled}, prompts are for {', '.join(known)}"
        )
    return asked


def _scores(embeddings: StoreEmbeddings, vectors: Mapping[str, PromptVectors]) -> NDArray[np.float64]:
    directions = np.stack([vector.direction for vector in vectors.values()])
    return study_scores(embeddings.aligned_or_fail(), embeddings.acquired, directions)
