"""Explanations that are measured: where an answer comes from, against where the lesion is.

For each study and each finding that it has and its mask shows, a heat map a sequence (`tasks/attribution.py`), scored
against the lesion (`tasks/heat_maps.py`). What is explained is the zero-shot score of a recipe with a text side, or the
logit of a fine-tuned detector (`detector`). The score of a study is that of the mean of its sequences' maps; each
sequence is scored by itself as well.

A map can point well without having read the study: lesions lie in the middle more often than at the rim. So beside the
scores stand chance, the network with its weights as first drawn, the nearness to the middle of the body, and the mean
map of all other subjects, which knows where the network usually looks and nothing of this study.

Scored on the grid of the store, whose mask this is. Written maps are on the grid of the study's finest series.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.geometry import spacing_mm
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.catalogue import StudyRow
from tomoglot.studies.lesion import finding_numbers
from tomoglot.tasks.answers import Answers, detector_answers, zero_shot_answers
from tomoglot.tasks.attribution import Asked, How, Method, explain
from tomoglot.tasks.blind_maps import MeanMaps, middle_map
from tomoglot.tasks.embeddings import Progress, is_simulated, opened, refuse_other_plan, seen_note
from tomoglot.tasks.heat_map_files import draw_overlay, write_heat
from tomoglot.tasks.heat_maps import CHANCE, HeatScore, HeatTable, compare_tables, score_heat, score_tables
from tomoglot.tasks.intervals import DRAWS
from tomoglot.tasks.labels import PartOfStore
from tomoglot.tasks.task import MODEL, SCRATCH, Prediction, TaskResult, side_of
from tomoglot.tasks.zero_shot import Against, questions

VERB: Literal["evaluate"] = "evaluate"
MIDDLE, MEAN_MAP = "middle of the body", "mean map"


class Config(Settings):
    """What to explain, and how.

    Attributes:
        split: which studies; "all" means every one.
        controls: also chance, the weights as first drawn, the middle of the body, and the mean map.
        seed: of the studies drawn, the weights of the control, and the bootstrap.
        detector: a folder `detector` that `transfer abnormality --out` wrote; None explains the zero-shot score.
        findings: which ones; None takes all that are asked and that a mask can show.
        method: see tasks/attribution.py. Measured on the demo's zero-shot scores, 143 simulated validation studies, the
            finest map: the pointing game hits 0.14 with `each_place` and 0.05 with `gradient`, chance 0.01.
        stages: of the encoder's pyramid, whose gradients are read; None takes all that reach the answer.
        box: voxels of an edge of what occlusion blanks.
        limit: at most so many studies, drawn at random; None takes all.
        tolerance_mm: how far from the lesion the pointing game still counts as a hit.
        against: what stands against a finding in the zero-shot score, see tasks/zero_shot.py.
        prompts: a JSON file of sentences instead of our own.
        pictures: so many of the studies are drawn, where maps are written.
        loader: how to load; None takes the checkpoint's.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One study to be explained: its batch, its row, and the region (i, j, k) of each finding that it has."""

    batch: Batch
    row: StudyRow
    regions: Mapping[str, NDArray[np.bool_]]
    tolerance_mm: float

    @property
    def body(self) -> NDArray[np.bool_]:
        """Where something was imaged (i, j, k): every rule of intensity keeps zero for where nothing was."""
        return (self.batch.volumes[0] != 0).any(dim=0).cpu().numpy()

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the crop."""
        return self.batch.affine[0].double().cpu().numpy()

    @property
    def subject(self) -> int:
        """Whose study it is."""
        return int(self.batch.subjects[0])

    @property
    def shown(self) -> tuple[str, ...]:
        """Acquired sequences, in the batch's order."""
        pairs = zip(self.batch.sequences, self.batch.acquired[0].tolist(), strict=True)
        return tuple(name for name, there in pairs if there)

    def score(self, heat: NDArray[np.float32], finding: str) -> HeatScore:
        """One map (i, j, k) against the region of a finding."""
        return score_heat(
            heat,
            self.regions[finding],
            body=self.body,
            spacing_mm=spacing_mm(self.affine),
            tolerance_mm=self.tolerance_mm,
        )


class Gathered:
    """Scores by arm, study and finding; studies stay in the order in which they came."""

    def __init__(self, findings: tuple[str, ...]) -> None:
        self.findings = findings
        self.subjects: dict[str, int] = {}
        self.found: dict[str, dict[str, dict[str, Mapping[str, float]]]] = {}

    def add(self, arm: str, case: Case, finding: str, values: Mapping[str, float]) -> None:
        """Scores of an arm's map of one finding of a study."""
        self.subjects[case.row.key] = case.subject
        self.found.setdefault(arm, {}).setdefault(case.row.key, {})[finding] = values

    def table(self, arm: str) -> HeatTable:
        """All of an arm."""
        rows = [self.found[arm].get(study, {}) for study in self.subjects]
        return HeatTable.of(rows, findings=self.findings, subjects=list(self.subjects.values()))


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
    cases = Cases(store, config, answers)
    if out is not None:
        _ = [row.native_grid for row in cases.rows]
    gathered, by_sequence, means = Gathered(cases.findings), Gathered(cases.findings), MeanMaps()
    total = len(cases.rows) * (2 if config.controls else 1)
    for number, case in enumerate(cases):
        for finding, each in _maps(answers.trained, case, config):
            _keep(case, finding, each, gathered=gathered, by_sequence=by_sequence, means=means)
            if out is not None:
                _write(out, case, finding, each, picture=number < config.pictures)
        if config.controls:
            for finding, each in _maps(answers.redrawn, case, config):
                gathered.add(SCRATCH, case, finding, case.score(each.mean(axis=0), finding).found)
        if progress is not None:
            progress(number + 1, total)
    if not gathered.found:
        raise ValueError(f"no study of split {config.split!r} has one of {', '.join(cases.findings)} in its mask")
    if config.controls:
        _add_blind_maps(gathered, cases, means, progress=progress)
    return (
        _result(gathered, by_sequence, config)
        .under(config)
        .but(
            split=config.split,
            model=type(answers.trained.net).__name__,
            simulated=is_simulated(store, side_of(config.split)),
            notes=(
                *seen_note(model, store, side_of(config.split)),
                *_seen_by_detector(answers, cases),
                *_notes(gathered, cases, config),
            ),
        )
    )


class Cases:
    """The studies to be explained, in the store's order; they can be walked more than once."""

    def __init__(self, store: StudySource, config: Config, answers: Answers) -> None:
        """Choose the studies.

        Raises:
            ValueError: a finding that is not asked or that no mask can show, or no study with a mask.
        """
        numbers = {finding: finding_numbers(finding) for finding in answers.trained.findings}
        wanted = config.findings or [finding for finding, its in numbers.items() if its is not None]
        refused = [finding for finding in wanted if numbers.get(finding) is None]
        if refused or not wanted:
            known = ", ".join(finding for finding, its in numbers.items() if its is not None) or "none"
            raise ValueError(f"cannot explain {', '.join(refused) or 'anything'}: asked and shown by masks are {known}")
        self.findings = tuple(wanted)
        self.numbers = {finding: its for finding, its in numbers.items() if its is not None}
        self._tolerance_mm = config.tolerance_mm
        split = side_of(config.split)
        rows = [
            row
            for row in store.rows
            if split in (None, row.split)
            and row.has_mask
            and set(row.sequences) & set(answers.sequences)
            and any(row.labels.get(finding, 0.0) > 0.5 for finding in wanted)
        ]
        if not rows:
            raise ValueError(f"no study of split {config.split!r} has a mask and one of {', '.join(wanted)}")
        if config.limit is not None:
            kept = set(np.random.default_rng(config.seed).permutation(len(rows))[: config.limit].tolist())
            rows = [row for at, row in enumerate(rows) if at in kept]
        self.rows = tuple(rows)
        settings = answers.loader.but(sequences=answers.sequences, masks=True, batch_size=1)
        self._loader = Loader(PartOfStore(store, self.rows), settings, split=None, train=False)
        self._device = next(answers.trained.net.parameters()).device

    def __iter__(self) -> Iterator[Case]:
        """Studies of which the crop shows a finding's region."""
        for row, batch in zip(self.rows, self._loader, strict=True):
            assert batch.masks is not None and batch.studies == (row.key,)
            mask = batch.masks[0].numpy()
            regions = {
                finding: np.isin(mask, self.numbers[finding])
                for finding in self.findings
                if row.labels.get(finding, 0.0) > 0.5
            }
            regions = {finding: region for finding, region in regions.items() if region.any()}
            if regions:
                moved = batch.to(self._device)
                yield Case(batch=moved, row=row, regions=regions, tolerance_mm=self._tolerance_mm)


def _answers(recipe: Recipe, store: StudySource, config: Config, loader: LoaderConfig) -> Answers:
    if config.detector is not None:
        answers = detector_answers(config.detector, seed=config.seed)
        assert answers.card is not None
        refuse_other_plan(answers.card.plan, store.plan)
        return answers if config.loader is None else replace(answers, loader=config.loader)
    prompts = questions(store.findings, config.prompts)
    return zero_shot_answers(recipe, loader, prompts, against=config.against, seed=config.seed)


def _maps(asked: Asked, case: Case, config: Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each finding of a study and its maps (s, i, j, k)."""
    findings = tuple(case.regions)
    yield from zip(findings, explain(asked, case.batch, findings, config.how), strict=True)


def _keep(
    case: Case,
    finding: str,
    each: NDArray[np.float32],
    *,
    gathered: Gathered,
    by_sequence: Gathered,
    means: MeanMaps,
) -> None:
    """Score the mean of a study's maps and each of them, and remember the mean for other subjects."""
    mean = each.mean(axis=0)
    scored = case.score(mean, finding)
    gathered.add(MODEL, case, finding, scored.found)
    gathered.add(CHANCE, case, finding, scored.chance)
    means.add(finding, case.subject, mean, body=case.body, affine=case.affine)
    for sequence, one in zip(case.shown, each, strict=True):
        by_sequence.add(sequence, case, finding, case.score(one, finding).found)


def _add_blind_maps(gathered: Gathered, cases: Cases, means: MeanMaps, *, progress: Progress | None) -> None:
    total = len(cases.rows)
    for number, case in enumerate(cases):
        middle = middle_map(case.body, case.affine)
        for finding in case.regions:
            gathered.add(MIDDLE, case, finding, case.score(middle, finding).found)
            others = means.of_others(finding, case.subject, body=case.body, affine=case.affine)
            if others is not None:
                gathered.add(MEAN_MAP, case, finding, case.score(others, finding).found)
        if progress is not None:
            progress(total + number + 1, 2 * total)


def _write(out: Path, case: Case, finding: str, each: NDArray[np.float32], *, picture: bool) -> None:
    for sequence, one in zip(case.shown, each, strict=True):
        write_heat(out / f"{case.row.key}_{finding}_{sequence}_heat.nii.gz", one, case.affine, case.row)
    if picture:
        volumes = case.batch.volumes[0][case.batch.acquired[0]].cpu().numpy()
        kind = "simulated study, " if case.row.simulated else ""
        draw_overlay(
            out / f"{case.row.key}_{finding}_heat.png",
            dict(zip(case.shown, volumes, strict=True)),
            dict(zip(case.shown, each, strict=True)),
            case.regions[finding],
            affine=case.affine,
            title=f"{finding} (outlined: the lesion); {kind}research only, not for diagnosis",
        )


def _result(gathered: Gathered, by_sequence: Gathered, config: Config) -> TaskResult:
    score_all = partial(score_tables, draws=config.draws, seed=config.seed)
    ours = gathered.table(MODEL)
    others = {arm: gathered.table(arm) for arm in gathered.found if arm != MODEL}
    scores = score_all(ours, each=True)
    for arm, table in others.items():
        scores += score_all(table, each=arm == CHANCE, arm=arm)
    for sequence in sorted(by_sequence.found):
        scores += score_all(by_sequence.table(sequence), name=f"{sequence} alone")
    return TaskResult(
        task="explanation",
        split="",
        subjects=len(np.unique(ours.subjects)),
        studies=len(gathered.subjects),
        scores=tuple(scores),
        comparisons=compare_tables(ours, others, draws=config.draws, seed=config.seed),
        predictions=tuple(
            Prediction(
                study=study,
                probabilities={},
                labels={finding: 1.0 for finding in found},
                measures={f"{finding}/{name}": value for finding, its in found.items() for name, value in its.items()},
            )
            for study, found in gathered.found[MODEL].items()
        ),
    )


def _seen_by_detector(answers: Answers, cases: Cases) -> tuple[str, ...]:
    if answers.card is None:
        return ()
    subjects = {row.subject for row in cases.rows}
    seen = answers.card.count_seen(subjects)
    return (f"NOT HELD OUT: the detector learned from {seen} of the {len(subjects)} subjects.",) if seen else ()


def _notes(gathered: Gathered, cases: Cases, config: Config) -> tuple[str, ...]:
    """What the numbers leave out."""
    what = "zero-shot score" if config.detector is None else "detector's logit"
    found = {finding for its in gathered.found[MODEL].values() for finding in its}
    never = [finding for finding in cases.findings if finding not in found]
    return (
        f"Explained: the {what}, by {config.method}. Only findings that a study has and its mask shows: "
        f"{', '.join(finding for finding in cases.findings if finding in found)}.",
        *((f"Never shown by a mask of this split: {', '.join(never)}.",) if never else ()),
        "Scores are of the mean of a study's maps, over the body, on the store's grid; `... alone` is one sequence's "
        "map. Chance is what the same values would get if they were dealt out over the body at random.",
        f"A hit of the pointing game is a maximum in the lesion or within {config.tolerance_mm:g} mm of it.",
    )
