"""Explanations that are measured: where an answer comes from, against where the lesion is.

For each study and each finding that it has and its mask shows, a heat map a sequence (`maps/attribution.py`), scored
against the lesion (`maps/heat_maps.py`). What is explained is the zero-shot score of a recipe with a text side, or the
logit of a fine-tuned detector (`detector`). The score of a study is that of the mean of its sequences' maps; each
sequence is scored by itself as well.

A map can point well without having read the study: lesions lie in the middle more often than at the rim. So beside the
scores stand chance, the network with its weights as first drawn, the nearness to the middle of the body, and the mean
map of all other subjects, which knows where the network usually looks and nothing of this study.

Scored on the grid of the store, whose mask this is. Written maps are on the grid of the study's finest series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from tomoglot.batches.loader import LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import Progress, is_simulated, opened, refuse_other_plan, seen_note
from tomoglot.tasks.maps.answers import Answers, detector_answers, zero_shot_answers
from tomoglot.tasks.maps.attribution import Asked, How, Method, explain
from tomoglot.tasks.maps.blind_maps import MeanMaps
from tomoglot.tasks.maps.lesion_cases import (
    Case,
    Cases,
    Gathered,
    Heat,
    add_blind_maps,
    keep_maps,
    map_notes,
    result_of_maps,
    write_maps,
)
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.task import SCRATCH, TaskResult, side_of
from tomoglot.tasks.zero_shot import Against, questions

VERB: Literal["evaluate"] = "evaluate"


class Config(Settings):
    """What to explain, and how.

    Attributes:
        split: which studies; "all" means every one.
        controls: also chance, the weights as first drawn, the middle of the body, and the mean map.
        seed: of the studies drawn, the weights of the control, and the bootstrap.
        detector: a folder `detector` that `transfer abnormality --out` wrote; None explains the zero-shot score.
        findings: which ones; None takes all that are asked and that a mask can show.
        method: see maps/attribution.py. Measured on the demo's zero-shot scores, 143 simulated validation studies, the
            finest map: the pointing game hits 0.14 with `each_place` and 0.05 with `gradient`, chance 0.01.
        stages: of the encoder's pyramid, whose gradients are read; None takes all that reach the answer.
        box: voxels of an edge of what occlusion blanks.
        limit: at most so many studies, drawn at random; None takes all.
        tolerance_mm: how far from the lesion the pointing game still counts as a hit.
        against: what stands against a finding in the zero-shot score, see tasks/zero_shot.py.
        prompts: a JSON file of sentences instead of our own.
        pictures: so many of the studies are drawn, where maps are written.
        loader: how studies are read; None reads them whole.
        draws: of the bootstrap.
    """

    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    detector: Path | None = None
    findings: tuple[str, ...] | None = Field(None, min_length=1)
    method: Method = "each_place"
    stages: tuple[int, ...] | None = Field(None, min_length=1)
    box: int = Field(8, ge=1)
    limit: int | None = Field(None, ge=1)
    tolerance_mm: float = Field(0.0, ge=0)
    against: Against = "absent"
    prompts: Path | None = None
    pictures: int = Field(4, ge=0)
    loader: LoaderConfig | None = None
    draws: int = Field(DRAWS, ge=1)

    @property
    def how(self) -> How:
        """Way and fineness of a map."""
        return How(method=self.method, stages=self.stages, box=self.box)


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Explain a recipe's zero-shot scores, or a detector's logits, on the studies of a split whose masks show them.

    With `out`, each map is written as `<key>_<finding>_<sequence>_heat.nii.gz`, and some studies are drawn as PNG.

    Raises:
        ValueError: nothing can be asked, no study has a mask with one of the findings, or the maps do not exist.
    """
    recipe, loader = opened(model, store, config.loader)
    answers = _answers(recipe, store, config, loader)
    cases = Cases(
        store,
        asked=answers.trained.findings,
        findings=config.findings,
        loader=answers.loader.but(sequences=answers.sequences),
        split=config.split,
        limit=config.limit,
        seed=config.seed,
        tolerance_mm=config.tolerance_mm,
        device=next(answers.trained.net.parameters()).device,
    )
    if out is not None:
        _ = [row.native_grid for row in cases.rows]
    gathered, by_sequence, means = Gathered(cases.findings), Gathered(cases.findings), MeanMaps()
    total = len(cases.rows) * (2 if config.controls else 1)
    for number, case in enumerate(cases):
        for finding, each in _maps(answers.trained, case, config):
            keep_maps(case, finding, each, gathered=gathered, by_sequence=by_sequence, means=means)
            if out is not None:
                write_maps(out, case, finding, each, picture=number < config.pictures)
        if config.controls:
            for finding, each in _maps(answers.redrawn, case, config):
                gathered.score(SCRATCH, case, finding, each.mean(axis=0))
        if progress is not None:
            progress(number + 1, total)
    if not gathered.found:
        raise ValueError(f"no study of split {config.split!r} has one of {', '.join(cases.findings)} in its mask")
    if config.controls:
        add_blind_maps(gathered, cases, means, progress=progress)
    return (
        result_of_maps(gathered, by_sequence, task="explanation", draws=config.draws, seed=config.seed)
        .under(config)
        .but(
            split=config.split,
            model=type(answers.trained.net).__name__,
            simulated=is_simulated(store, side_of(config.split)),
            notes=(
                *seen_note(model, store, side_of(config.split), answers.loader),
                *_seen_by_detector(answers, cases),
                *_notes(gathered, cases, config),
            ),
        )
    )


def _answers(recipe: Recipe, store: StudySource, config: Config, loader: LoaderConfig) -> Answers:
    if config.detector is not None:
        answers = detector_answers(config.detector, seed=config.seed)
        assert answers.card is not None
        refuse_other_plan(answers.card.plan, store.plan)
        return answers if config.loader is None else replace(answers, loader=config.loader)
    prompts = questions(store.findings, config.prompts)
    return zero_shot_answers(recipe, loader, prompts, against=config.against, seed=config.seed)


def _maps(asked: Asked, case: Case, config: Config) -> Iterator[tuple[str, Heat]]:
    """Each finding of a study and its maps (s, i, j, k)."""
    findings = tuple(case.regions)
    yield from zip(findings, explain(asked, case.batch, findings, config.how), strict=True)


def _seen_by_detector(answers: Answers, cases: Cases) -> tuple[str, ...]:
    if answers.card is None:
        return ()
    subjects = {row.subject for row in cases.rows}
    seen = answers.card.count_seen(subjects)
    return (f"NOT HELD OUT: the detector learned from {seen} of the {len(subjects)} subjects.",) if seen else ()


def _notes(gathered: Gathered, cases: Cases, config: Config) -> tuple[str, ...]:
    """What the numbers leave out."""
    what = "zero-shot score" if config.detector is None else "detector's logit"
    return (
        f"Explained: the {what}, by {config.method}. Only findings that a study has and its mask shows: "
        f"{', '.join(gathered.shown)}.",
        *map_notes(gathered, cases, tolerance_mm=config.tolerance_mm),
    )
