"""Phrase grounding: does the map of a phrase lie where the phrase says, in the study that it is true of?

For each study and each finding that it has and its mask shows, a phrase (`maps/phrases_of_study.py`) and its map, a
sequence at a time. The map is that of the recipe's local alignment (`Recipe.word_maps`, MPMA), or, for any recipe with
a text side, what in the volume speaks for its global likeness to the phrase (`maps/attribution.py`). It is scored
against the lesion as explanations are (`maps/heat_maps.py`), and by its side: `right_side` is the share of one-sided
findings whose map is hotter, per voxel, on the lesion's own side of the midline than on the other.

A map may point well and have read no word: bright lesions are seen whatever is asked. So beside chance, redrawn
weights, the middle of the body and the mean map of others stand the maps of two phrases that are not true of the study:
the same with left and right exchanged, and that of a finding which it does not have. What is not above these is not
grounding.

The paper of MPMA gives no such numbers; everything here is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import LoaderConfig, StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.encoders.vit import ViT
from tomoglot.recipes.recipe import Recipe
from tomoglot.studies.findings import LISTS
from tomoglot.tasks.embeddings import Progress, from_scratch, has_text_side, is_simulated, opened, seen_note
from tomoglot.tasks.maps.answers import likeness
from tomoglot.tasks.maps.attribution import How, explain, spread_patches
from tomoglot.tasks.maps.blind_maps import MeanMaps
from tomoglot.tasks.maps.heat_maps import METRICS, HeatScore
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
from tomoglot.tasks.maps.phrases_of_study import (
    Kind,
    Phrases,
    Phrasing,
    Side,
    midline_mm,
    right_share,
    side_of_region,
)
from tomoglot.tasks.queries.searches import embed_texts
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.task import SCRATCH, TaskResult, side_of

VERB: Literal["evaluate"] = "evaluate"
RIGHT_SIDE = "right_side"
OTHER_SIDE, OTHER_FINDING = "other side's phrase", "another finding's phrase"
Way = Literal["words", "each_place", "gradient", "occlusion"]
# From phrases to one map a sequence (s, i, j, k), the mean over the phrases.
Looked = Callable[[Sequence[str]], Heat]


class Config(Settings):
    """What to ask, and how a phrase is turned into a map.

    Attributes:
        split: which studies; "all" means every one.
        controls: also redrawn weights, phrases that are not true, the middle of the body, and the mean map.
        seed: of the studies drawn, the phrases that are not true, the weights of the control, and the bootstrap.
        findings: which ones; None takes all that a mask can show.
        phrases: "names", from the finding and the side of its mask; or the "sentences" of the study's own report that
            say it is present (of several the mean map).
        way: "words" is the recipe's local alignment; the others explain the likeness of volume and phrase, see
            maps/attribution.py, so that local maps can be compared with those of the global alignment.
        stages: of the encoder's pyramid, for gradients; None takes all that reach the answer.
        limit: at most so many studies, drawn at random; None takes all.
        tolerance_mm: how far from the lesion the pointing game still counts as a hit.
        pictures: so many of the studies are drawn, where maps are written.
        loader: how studies are read; None reads them whole.
        draws: of the bootstrap.
    """

    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    findings: tuple[str, ...] | None = Field(None, min_length=1)
    phrases: Kind = "names"
    way: Way = "words"
    stages: tuple[int, ...] | None = Field(None, min_length=1)
    limit: int | None = Field(None, ge=1)
    tolerance_mm: float = Field(0.0, ge=0)
    pictures: int = Field(4, ge=0)
    loader: LoaderConfig | None = None
    draws: int = Field(DRAWS, ge=1)


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Ground phrases in the studies of a split whose masks show what they name.

    With `out`, each map is written as `<key>_<finding>_<sequence>_heat.nii.gz`, and some studies are drawn as PNG.

    Raises:
        ValueError: the recipe has no such maps, no study has a mask with one of the findings, or none can be asked.
    """
    recipe, loader = opened(model, store, config.loader)
    _check(recipe, config)
    known = {name for names in LISTS.values() for name in names}
    cases = Cases(
        store,
        asked=[name for name in store.findings if config.phrases == "names" or name in known],
        findings=config.findings,
        loader=loader.but(sequences=recipe.sequences),
        split=config.split,
        limit=config.limit,
        seed=config.seed,
        tolerance_mm=config.tolerance_mm,
        device=next(recipe.parameters()).device,
        to="ground",
    )
    if out is not None:
        _ = [row.native_grid for row in cases.rows]
    asking = _Asking(recipe.eval(), cases, config)
    total = len(cases.rows) * (2 if config.controls else 1)
    for number, case in enumerate(cases):
        asking.ask(case, out=out, picture=number < config.pictures)
        if progress is not None:
            progress(number + 1, total)
    if not asking.gathered.found:
        raise ValueError(
            f"no study of split {config.split!r} has one of {', '.join(cases.findings)} in its mask and a phrase for it"
        )
    if config.controls:
        add_blind_maps(asking.gathered, cases, asking.means, progress=progress)
    split = side_of(config.split)
    return (
        result_of_maps(
            asking.gathered, asking.by_sequence, task="phrase_grounding", draws=config.draws, seed=config.seed
        )
        .under(config)
        .but(
            split=config.split,
            model=type(recipe).__name__,
            simulated=is_simulated(store, split),
            notes=(*seen_note(model, store, split, loader), *_notes(asking, cases, config)),
        )
    )


class _Asking:
    """Asks study after study, and keeps what was found."""

    def __init__(self, recipe: Recipe, cases: Cases, config: Config) -> None:
        self.recipe, self.config = recipe, config
        self.redrawn = from_scratch(recipe, seed=config.seed) if config.controls else None
        self.phrasing = Phrasing(config.phrases, cases.findings, cases.rows, seed=config.seed)
        self.gathered, self.by_sequence = (
            Gathered(cases.findings, metrics=(*METRICS, RIGHT_SIDE), measure=measure) for _ in range(2)
        )
        self.means = MeanMaps()
        self.sides: Counter[str] = Counter()
        self.examples: Counter[str] = Counter()
        self.unsaid = 0

    def ask(self, case: Case, *, out: Path | None, picture: bool) -> None:
        """All findings of one study."""
        middle = midline_mm(case.body, case.affine)
        asked: dict[str, Phrases] = {}
        for finding, region in case.regions.items():
            side = side_of_region(finding, region, case.affine, middle)
            phrases = self.phrasing.of(case.row, finding, side)
            self.unsaid += not phrases.own
            if phrases.own:
                asked[finding] = phrases
                self.sides[side or "no side"] += 1
        every = tuple(dict.fromkeys(text for phrases in asked.values() for text in phrases.all))
        if not every:
            return
        found = look(self.recipe, case.batch, every, self.config)
        redrawn = None if self.redrawn is None else look(self.redrawn, case.batch, every, self.config)
        for finding, phrases in asked.items():
            each = found(phrases.own)
            keep_maps(case, finding, each, gathered=self.gathered, by_sequence=self.by_sequence, means=self.means)
            title = ""
            if self.config.phrases == "names":
                # A sentence of a report is not put into a picture or a note.
                self.examples[title := phrases.own[0]] += 1
            if out is not None:
                write_maps(out, case, finding, each, picture=picture, title=title)
            if redrawn is not None:
                self._add_controls(case, finding, phrases, found=found, redrawn=redrawn)

    def _add_controls(self, case: Case, finding: str, phrases: Phrases, *, found: Looked, redrawn: Looked) -> None:
        for arm, looked, texts in (
            (SCRATCH, redrawn, phrases.own),
            (OTHER_SIDE, found, phrases.other_side),
            (OTHER_FINDING, found, phrases.other_finding),
        ):
            if texts:
                self.gathered.score(arm, case, finding, looked(texts).mean(axis=0))


def measure(case: Case, heat: Heat, finding: str) -> HeatScore:
    """The scores of a map (i, j, k), and `right_side`: 1, 0, or a half where both sides are as hot.

    Heat is counted per voxel of the body: an effusion makes its side of a body larger, and a map that is the same
    everywhere must not win by that. NaN for a finding that has no side or both; by chance a half.
    """
    scored, body = case.score(heat, finding), case.body
    middle = midline_mm(body, case.affine)
    side: Side | None = side_of_region(finding, case.regions[finding], case.affine, middle)
    told = chance = float("nan")
    if side in ("left", "right"):
        inside = np.where(body, np.maximum(heat, 0.0), 0.0)
        more = right_share(inside, case.affine, middle) - right_share(body, case.affine, middle)
        # What rounding leaves of a map that is the same on both sides decides nothing.
        undecided = not inside.any() or abs(more) < 1e-6
        told, chance = 0.5 if undecided else float((more > 0) == (side == "right")), 0.5
    return HeatScore(found={**scored.found, RIGHT_SIDE: told}, chance={**scored.chance, RIGHT_SIDE: chance})


def look(recipe: Recipe, study: Batch, phrases: tuple[str, ...], config: Config) -> Looked:
    """Ask all phrases of one study at once; what is given back makes the mean map (s, i, j, k) of some of them.

    Raises:
        ValueError: the recipe was trained without local alignment, and `way` is words.
    """
    if config.way == "words":
        maps, edges = _word_maps(recipe, study, phrases)
    else:
        asked = likeness(recipe, embed_texts(recipe, phrases), phrases)
        maps = explain(asked, study, phrases, How(method=config.way, stages=config.stages))
        edges = (1, 1, 1)
    shape = study.volumes.shape[2:]
    return lambda some: spread_patches(maps[[phrases.index(text) for text in some]].mean(axis=0), shape, edges)


def _word_maps(recipe: Recipe, study: Batch, phrases: tuple[str, ...]) -> tuple[Heat, tuple[int, int, int]]:
    """Word maps (q, s, gi, gj, gk) of one study, and the voxels of a patch along each axis."""
    with torch.inference_mode():
        try:
            maps = recipe.word_maps(study, phrases)
        except NotImplementedError as error:
            raise ValueError(f"{error}; {_ELSE}") from error
    encoder = recipe.backbone(recipe.sequences[0])
    stride = encoder.strides[-1]
    edges = encoder.patch if isinstance(encoder, ViT) else (stride, stride, stride)
    return maps[0][study.acquired[0]].transpose(0, 1).float().cpu().numpy(), edges


_ELSE = (
    "choose way=each_place, which explains the likeness of volume and phrase for any recipe with a text side, or "
    "`tomoglot evaluate explanation`"
)


def _check(recipe: Recipe, config: Config) -> None:
    """Refuse before anything is read what the recipe cannot do."""
    name = type(recipe).__name__
    if config.way == "words" and type(recipe).word_maps is Recipe.word_maps:
        raise ValueError(f"{name} aligns no words with places, so a phrase points nowhere; {_ELSE}")
    if config.way != "words" and not has_text_side(recipe):
        raise ValueError(
            f"{name} has no text side: nothing in a volume speaks for a phrase; explain a detector by `tomoglot "
            "evaluate explanation --set detector=FOLDER`"
        )


def _notes(asking: _Asking, cases: Cases, config: Config) -> tuple[str, ...]:
    """What the numbers leave out."""
    how = "the local alignment of words and patches" if config.way == "words" else f"the global likeness, {config.way}"
    sides = ", ".join(f"{count} {side}" for side, count in asking.sides.most_common())
    usual = "; ".join(text for text, _ in asking.examples.most_common(8))
    source = f"the finding's usual name and side, such as: {usual}" if usual else "sentences of the study's own report"
    left = f" Left out, since no sentence says it: {asking.unsaid}." if asking.unsaid else ""
    return (
        f"Maps are of {how}. Phrases are {source}. Sides of the findings by their masks: {sides}.{left}",
        f"Findings: {', '.join(asking.gathered.shown)}.",
        *map_notes(asking.gathered, cases, tolerance_mm=config.tolerance_mm),
        "right_side: of one-sided findings alone, the share whose map is hotter, per voxel of the body, on the "
        "lesion's own side of the midline; chance is a half. A map that finds bright lesions and reads no word has a "
        "high one too.",
        f"{OTHER_SIDE.capitalize()} is the phrase with left and right exchanged; {OTHER_FINDING} is of one that the "
        "study does not have, of the same organ: the map of a phrase that is read must be better than both.",
    )
