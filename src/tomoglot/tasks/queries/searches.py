"""What retrieval searches: which studies and reports are one item, their vectors, the searches of each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tomoglot.recipes.recipe import Recipe
from tomoglot.studies.report import report_body
from tomoglot.tasks.embeddings import StoreEmbeddings, study_vectors
from tomoglot.tasks.scores.ranks import Search

Direction = Literal["report_to_volume", "volume_to_report", "volume_to_volume"]
SAME, SHARED = "volume to volume, same findings", "volume to volume, a shared finding"
TEXTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """What is searched, by number of the study among the embedded ones.

    Attributes:
        rows: the studies that are kept.
        text: number of each kept study's report among `texts`, -1 where it has none.
        texts: reports that differ.
        doubled: studies left out since another of the same subject has the same report.
    """

    rows: NDArray[np.int64]
    text: NDArray[np.int64]
    texts: tuple[str, ...]
    doubled: int

    @property
    def told(self) -> NDArray[np.int64]:
        """Places in `rows` of the studies with a report."""
        return np.flatnonzero(self.text >= 0)


def list_items(reports: Sequence[str | None], subjects: NDArray[np.integer]) -> Items:
    """The first study of each pair of a subject and a report's words; studies without a report all stay."""
    numbers: dict[str, int] = {}
    taken: set[tuple[int, int]] = set()
    rows, text = [], []
    for at, (report, subject) in enumerate(zip(reports, subjects.tolist(), strict=True)):
        body = report_body(report) if report else ""
        number = numbers.setdefault(" ".join(body.split()), len(numbers)) if body else -1
        if number >= 0 and (subject, number) in taken:
            continue
        taken.add((subject, number))
        rows.append(at)
        text.append(number)
    return Items(
        rows=np.array(rows, dtype=np.int64),
        text=np.array(text, dtype=np.int64),
        texts=tuple(numbers),
        doubled=len(reports) - len(rows),
    )


def volume_vectors(
    embeddings: StoreEmbeddings, *, reference: StoreEmbeddings | None = None, space: str = "features"
) -> NDArray[np.float64]:
    """A unit vector a study (n, d), so that products are cosines; zeros for a study that cannot be told from the mean.

    Features are first standardised, a sequence at a time, over the studies of `reference` (None: their own): what all
    volumes of a sequence have in common would else make a study most like those of which the same was acquired.
    """
    if space == "shared":
        return _units(study_vectors(embeddings.aligned_or_fail(), embeddings.acquired))
    known = embeddings if reference is None else reference
    standardised = np.zeros(embeddings.features.shape)
    for at in range(len(embeddings.sequences)):
        rows = known.features[known.acquired[:, at], at].astype(np.float64)
        if len(rows):
            spread = rows.std(axis=0)
            # Spread below a ten-thousandth of the size is rounding: scaled up, it would be taken for a difference.
            tells = spread > 1e-4 * np.sqrt(np.mean(rows**2))
            away = embeddings.features[:, at] - rows.mean(axis=0)
            standardised[:, at] = np.divide(away, spread, out=np.zeros_like(away), where=tells)
    return _units(study_vectors(_units(standardised), embeddings.acquired))


def embed_texts(recipe: Recipe, texts: Sequence[str]) -> NDArray[np.float64]:
    """Unit vectors of texts in the space shared with volumes (t, d); (0, 0) without texts."""
    if not texts:
        return np.zeros((0, 0))
    was_training = recipe.training
    recipe.eval()
    try:
        with torch.inference_mode():
            parts = [
                recipe.align_texts(list(texts[at : at + TEXTS_AT_ONCE])).double().cpu().numpy()
                for at in range(0, len(texts), TEXTS_AT_ONCE)
            ]
    finally:
        recipe.train(was_training)
    return np.concatenate(parts)


def build_searches(
    embeddings: StoreEmbeddings,
    texts: NDArray[np.float64],
    items: Items,
    *,
    directions: Sequence[Direction],
    space: str,
) -> list[Search]:
    """The searches of one arm; a direction that the studies hold nothing for is left out."""
    told, subjects = items.told, embeddings.subjects[items.rows]
    text, own = items.text[told], np.arange(len(told))
    found = []
    if set(directions) != {"volume_to_volume"} and len(told):
        volumes = study_vectors(embeddings.aligned_or_fail(), embeddings.acquired)[items.rows[told]]
        known = np.unique(text)
        pairs = {
            "report_to_volume": Search(
                name="report to volume",
                queries=texts[text],
                answers=volumes,
                right=lambda rows: np.equal.outer(text[rows], text),
                homes=own,
                subjects=subjects[told],
            ),
            "volume_to_report": Search(
                name="volume to report",
                queries=volumes,
                answers=texts[known],
                right=lambda rows: np.equal.outer(text[rows], known),
                homes=np.searchsorted(known, text),
                subjects=subjects[told],
            ),
        }
        found += [pairs[direction] for direction in directions if direction in pairs]
    if "volume_to_volume" in directions:
        found += _alike(volume_vectors(embeddings, space=space), embeddings, items)
    return found


def _alike(vectors: NDArray[np.float64], embeddings: StoreEmbeddings, items: Items) -> list[Search]:
    """Volume to volume, for studies with a known finding: those with the same findings, and those that share one."""
    labelled = embeddings.labelled[items.rows]
    chosen = np.flatnonzero(labelled.any(axis=1))
    if not len(chosen):
        return []
    rows = items.rows[chosen]
    present = (embeddings.labels[rows] > 0.5) & labelled[chosen]
    # Nothing present is the same only where the same was looked for.
    nothing = labelled[chosen] & ~present.any(axis=1, keepdims=True)
    kinds = np.unique(np.concatenate([present, nothing], axis=1), axis=0, return_inverse=True)[1].ravel()
    shared = present.astype(np.float32)
    subjects = embeddings.subjects[rows]
    same = Search(
        name=SAME,
        queries=vectors[rows],
        answers=vectors[rows],
        right=lambda asked: np.equal.outer(kinds[asked], kinds),
        homes=np.arange(len(rows)),
        subjects=subjects,
        owners=subjects,
    )
    return [same, replace(same, name=SHARED, right=lambda asked: np.greater(shared[asked] @ shared.T, 0))]


def _units(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
