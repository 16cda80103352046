"""A recipe's own loss, and a task's error, on subjects that were not trained on; and how drawing them moves both.

A contrastive loss is a number of several studies at once, so subjects are measured, and drawn, in groups that stay the
same for every model that is measured.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tomoglot.batches.loader import Loader
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.run import RunConfig
from tomoglot.store.catalogue import StudyRow
from tomoglot.store.reader import Store
from tomoglot.tasks.scores.intervals import draw_subjects, macro_auroc, over_draws
from tomoglot.tasks.scores.power_law import Estimate, Reals
from tomoglot.tasks.task import load_result

LOSS = "loss"
GROUPS_WANTED = 20


class Cell(Settings):
    """One pre-training and its measures; `untrained` are those of its weights before the first step.

    `groups` are the held-out losses by group of subjects, `terms` the means of the loss's terms.
    """

    fraction: float
    width: float
    seed: int
    subjects: int
    studies: int
    parameters: int
    steps: int
    epochs: float
    seconds: float
    measures: dict[str, Estimate]
    untrained: dict[str, float]
    terms: dict[str, float]
    groups: tuple[float, ...]


def names_of(cells: Sequence[Cell]) -> list[str]:
    """Names of the measures of cells, the loss first."""
    return sorted(cells[0].measures, key=lambda name: (name != LOSS, name))


def title_of(measure: str) -> str:
    """What a measure is called on an axis: the loss, or a task's error."""
    return measure if measure == LOSS else f"{measure} error"


def table_of(cells: Sequence[Cell]) -> str:
    """The cells as CSV."""
    plain = ("fraction", "width", "seed", "subjects", "studies", "parameters", "steps", "epochs", "seconds")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    measured = [(name, part) for name in names_of(cells) for part in ("value", "low", "high", "untrained")]
    rows.writerow([*plain, *(f"{name}_{part}" for name, part in measured)])
    for cell in cells:
        values = {
            (name, part): getattr(its, part) for name, its in cell.measures.items() for part in ("value", "low", "high")
        }
        values |= {(name, "untrained"): value for name, value in cell.untrained.items()}
        rows.writerow([*(getattr(cell, name) for name in plain), *(f"{values[key]:.6g}" for key in measured)])
    return text.getvalue()


def held_out_groups(
    store: Store, split: str, *, sequences: Sequence[str] | None = None, group: int | None = None, most: int = 24
) -> list[list[StudyRow]]:
    """Studies of a split that have one of the sequences, in groups of `group` subjects; no subject lies in two.

    Without `group` there are about 20 groups, of two subjects or more, and of no more than `most`.

    Raises:
        ValueError: there are too few for two groups.
    """
    wanted = set(sequences or store.sequences)
    rows = [row for row in store.select(split) if wanted & set(row.sequences)]
    subjects = np.random.default_rng(0).permutation(np.unique([row.subject for row in rows]))
    size = group or min(max(2, len(subjects) // GROUPS_WANTED), most)
    count = len(subjects) // size
    if count < 2:
        raise ValueError(
            f"split {split!r} holds {len(subjects)} subjects: too few for two groups of {size}, without which "
            "no interval can be given"
        )
    return [[row for row in rows if row.subject in set(part)] for part in np.array_split(subjects, count)]


def held_out_loss(
    recipe: Recipe, store: Store, groups: Sequence[Sequence[StudyRow]], run: RunConfig
) -> tuple[Reals, dict[str, float]]:
    """The recipe's loss of every group, and the means of its terms over studies.

    As at the end of a run (`progress` 1), in evaluation mode, with central crops; what a recipe draws (blocks, words)
    is drawn by the group's number, so that all cells meet the same.
    """
    fabric = run.schedule.fabric()
    recipe = recipe.to(fabric.device).eval()
    found: list[dict[str, float]] = []
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []), torch.no_grad():
        for number, rows in enumerate(groups):
            settings = run.loader.but(batch_size=len(rows), workers=min(run.loader.workers, 1))
            tokenizer = getattr(recipe, "tokenizer", None)
            (batch,) = Loader(store.only(rows), settings, split=None, train=False, tokenizer=tokenizer)
            torch.manual_seed(number)
            with fabric.autocast():
                terms = recipe.losses(batch.to(fabric.device), progress=1.0)
            found.append({name: float(term) for name, term in terms.items()})
    sizes = [len(rows) for rows in groups]
    means = {name: float(np.average([one[name] for one in found], weights=sizes)) for name in found[0]}
    return np.array([math.fsum(one.values()) for one in found]), means


def drawn_losses(losses: Reals, sizes: Reals, draws: int) -> Reals:
    """The mean over studies when groups of subjects are drawn: (draws,)."""
    weights = draw_subjects(np.arange(len(losses)), draws=draws) * sizes
    return np.asarray(weights @ losses / weights.sum(axis=1))


def drawn_errors(path: Path, store: Store, draws: int) -> Reals:
    """A task's error when subjects are drawn: (draws,)."""
    found = load_result(path).predictions
    people = {row.key: row.subject for row in store.rows}
    findings = sorted(found[0].probabilities)
    given = np.array([[one.probabilities[name] for name in findings] for one in found])
    labels = np.array([[one.labels.get(name, 0.0) for name in findings] for one in found])
    known = np.array([[name in one.labels for name in findings] for one in found])
    subjects = np.array([people[one.study] for one in found])
    return 1 - over_draws(macro_auroc(given, labels, known), draw_subjects(subjects, draws=draws))
