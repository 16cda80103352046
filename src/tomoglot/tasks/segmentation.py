"""Segmentation from a pre-trained encoder: sequences as channels, a decoder with skips, all of it trained on masks.

Trained on the train split, a threshold a region chosen on the val split, scored once on another. Beside the score stand
the same network from scratch with the same budget, and the trained one with its image removed. What is predicted can be
written as NIfTI on the grid that each study came on.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tomoglot.batches.augment import Augment
from tomoglot.batches.loader import StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.encoders.weights import Adaptation
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.store.catalogue import StudyRow
from tomoglot.tasks.embeddings import Progress, is_simulated, opened, seen_note
from tomoglot.tasks.heads.network import save_network
from tomoglot.tasks.heads.segment_arm import Arm, Box, Job, fit_arm, measure_arm, with_thresholds
from tomoglot.tasks.labels import fewer_labels
from tomoglot.tasks.scores.intervals import DRAWS
from tomoglot.tasks.scores.lesions import LEAST_IOU
from tomoglot.tasks.scores.regions import Measured, choose_regions, compare_measured, score_measured
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH, Prediction, SubsetScore, TaskResult

VERB: Literal["transfer"] = "transfer"


class Config(Settings):
    """How to learn and to score.

    Attributes:
        split: which studies are scored; not one that is learned from.
        controls: also train the same network from scratch, and score the trained one without its image.
        seed: of the weights drawn, the order, the crops, the subjects that keep their labels, and the bootstrap.
        label_fraction: share of the training subjects (those with a mask) that is learned from.
        regions: names known to studies/lesion.py, or names with mask labels; None takes those the train split holds.
        sequences: the channels, in order; None takes those of the recipe.
        crop_voxels: training crops and inference windows; None takes whole fields.
        whole_field: predict whole fields at once, even where training sees crops; faster where they fit in memory.
        lesion_share: share of the crops that are centred on a lesion.
        frozen: the encoder stays as it is, and the decoder alone is trained: what do its features know already?
        network: a folder `network` that this task wrote: training goes on from it. From scratch stays from scratch.
        steps: updates of each arm; 0, with a network, only predicts and scores.
        warmup_steps: updates until the full learning rate.
        batch_size: studies an update.
        learning_rate: at its highest (code: 3e-4 for 300 epochs of a larger network).
        weight_decay: of AdamW (code: 1e-4).
        absent: what fills the channel of a sequence that was not acquired: zeros, or the recipe's template.
        input_weights: how one input channel becomes many, see `encoders.weights.adapt_input`.
        from_sequence: whose encoder is taken, for a recipe with an encoder a sequence.
        deep_supervision: coarser outputs that are trained as well (code: 2).
        dice_weight: of soft Dice (code: 0.7).
        cross_entropy_weight: of binary cross-entropy (code: 0.3).
        over_batch: one Dice over the studies of a batch, or (code) one a study, where most have no lesion at all and
            teach nothing of it. Measured from scratch on 106 simulated studies, 200 steps: mean Dice 0.23 against 0.17.
        consistency_weight: of the difference of two copies with other sequences replaced; 0: no copies (code: 0.1).
        consistency_on: pooled embeddings (stated) or the coarsest logits (code).
        drop_sequence_probability: of hiding an acquired sequence in training.
        augment: how training fields vary; flips too, since no side is told.
        flips: average over mirror images when predicting.
        overlap: share of an inference window that the next one sees again.
        tolerance_mm: of NSD; None takes the longest voxel edge of the scored studies.
        lesion_iou: what it takes to find a lesion, see scores/lesions.py; 0 is the rule of ISLES 2022.
        subsets: sequences of which every combination is scored, as if nothing else had been acquired.
        workers: threads that read.
        draws: of the bootstrap.
        precision: of training.
        accelerator: what to train on.
    """

    split: str = "test"
    controls: bool = True
    seed: int = Field(0, ge=0)
    label_fraction: float = Field(1.0, gt=0, le=1)
    regions: dict[str, tuple[int, ...]] | tuple[str, ...] | None = None
    sequences: tuple[str, ...] | None = Field(None, min_length=1)
    crop_voxels: Box | None = None
    whole_field: bool = False
    lesion_share: float = Field(0.5, ge=0, le=1)
    frozen: bool = False
    network: Path | None = None
    steps: int = Field(300, ge=0)
    warmup_steps: int = Field(20, ge=0)
    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    absent: Literal["zero", "template"] = "zero"
    input_weights: Adaptation = "mean"
    from_sequence: str | None = None
    deep_supervision: int = Field(2, ge=0)
    dice_weight: float = Field(0.7, ge=0)
    cross_entropy_weight: float = Field(0.3, ge=0)
    over_batch: bool = True
    consistency_weight: float = Field(0.0, ge=0)
    consistency_on: Literal["embedding", "logits"] = "embedding"
    drop_sequence_probability: float = Field(0.0, ge=0, lt=1)
    augment: Augment.Config = Augment.Config()
    flips: bool = False
    overlap: float = Field(0.5, ge=0, lt=1)
    tolerance_mm: float | None = Field(None, gt=0)
    lesion_iou: float = Field(LEAST_IOU, ge=0, le=1)
    subsets: tuple[str, ...] = ()
    workers: int = Field(2, ge=0)
    draws: int = Field(DRAWS, ge=1)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps == 0 and (self.network is None or self.controls):
            raise ValueError("steps 0 only predicts: it needs a trained network, and controls=false")
        if self.frozen and self.consistency_weight and self.consistency_on == "embedding":
            raise ValueError("a frozen encoder's embeddings cannot be pulled together; set consistency_on=logits")
        return self

    @property
    def schedule(self) -> Schedule:
        """The loop's settings."""
        names = ("warmup_steps", "learning_rate", "weight_decay", "precision", "accelerator")
        return Schedule(steps=max(1, self.steps), **{name: getattr(self, name) for name in names})


def score(
    model: Recipe | Loaded,
    store: StudySource,
    config: Config,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Train on the train split, choose thresholds on val, score on the settings' split, with controls.

    With `out`, the model's prediction of every study of that split is written as `<key>_<region>.nii.gz`, and the
    trained network as the folder `network`.

    Raises:
        ValueError: a split that is learned from or that has no mask, a region nobody has, or with `out` a store that
            does not know the grids its studies came on.
    """
    recipe, _ = opened(model, store, None)
    job = plan_job(recipe, store, config)
    if out is not None:
        _ = [row.native_grid for row in store.rows if row.split == config.split]
    names = (MODEL, SCRATCH) if config.controls else (MODEL,)
    fitted, measured = list[Arm](), {}
    for number, name in enumerate(names):

        def step(done: int, total: int, *, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(names) * total)

        fitted.append(fit_arm(recipe, job, pretrained=name == MODEL, progress=step))
        measured[name] = measure_arm(fitted[-1], job, out=out if name == MODEL else None)
    if out is not None:
        _save(out / "network", fitted[0], job)
    if config.controls:
        blind = with_thresholds(fitted[0], job, name=IMAGE_REMOVED, blind=True)
        measured[IMAGE_REMOVED] = measure_arm(blind, job, blind=True)
    ours = measured[MODEL]
    chance = {"draws": config.draws, "seed": config.seed}
    others = {name: found for name, found in measured.items() if name != MODEL}
    scores = [one for name, found in measured.items() for one in score_measured(found, arm=name, **chance)]
    return TaskResult(
        task="segmentation",
        split=config.split,
        model=type(recipe).__name__,
        simulated=is_simulated(store, config.split),
        subjects=len(np.unique(ours.subjects)),
        studies=len(ours.studies),
        scores=tuple(scores),
        comparisons=compare_measured(ours, others, **chance),
        subsets=_score_subsets(fitted[0], job),
        notes=(
            *seen_note(model, store, config.split),
            *_seen_before(fitted[0], job),
            *_notes(job),
            *(said for arm in fitted for said in arm.notes),
        ),
        predictions=_predictions(ours),
    )


def plan_job(recipe: Recipe, store: StudySource, config: Config) -> Job:
    """Which studies, channels and regions; everything that can be refused before training is refused here."""
    if config.split in ("train", "val", "all"):
        raise ValueError(f"split {config.split!r} is what the task learns from; score another, such as test")
    sequences = config.sequences or recipe.sequences
    _refuse_unknown("sequences", config.sequences or (), store.sequences)
    _refuse_unknown("subsets", config.subsets, sequences)
    masked = [row for row in store.rows if row.has_mask and set(row.sequences) & set(sequences)]
    for split in ("train", config.split):
        if not any(row.split == split for row in masked):
            raise ValueError(f"no study of split {split!r} has a mask and one of {', '.join(sequences)}")
    learned = [row for row in masked if row.split == "train"]
    present = {int(label) for row in learned for label in np.unique(store.read_mask(row, (0, 0, 0), row.shape))}
    scored = [row for row in masked if row.split == config.split]
    i, j, k = (max(row.shape[axis] for row in store.rows) for axis in range(3))
    return Job(
        config=config,
        store=store,
        training=fewer_labels(store, fraction=config.label_fraction, seed=config.seed, usable=learned),
        sequences=tuple(sequences),
        regions=choose_regions(config.regions, present),
        field=(i, j, k),
        tolerance_mm=config.tolerance_mm or max(max(row.spacing_mm) for row in scored),
    )


def _refuse_unknown(setting: str, wanted: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"{setting}: there is no {', '.join(unknown)} among {', '.join(known)}")


def _score_subsets(arm: Arm, job: Job) -> tuple[SubsetScore, ...]:
    """The model on every combination of the sequences asked for; its thresholds stay those of all sequences."""
    asked, config = job.config.subsets, job.config
    total = sum(row.split == config.split and row.has_mask for row in job.store.rows)
    found = []
    for size in range(1, len(asked) + 1):
        for shown in combinations(asked, size):
            measured = measure_arm(arm, job, shown=shown)
            if not measured.has.any():
                continue
            macro = score_measured(measured, draws=config.draws, seed=config.seed)[0]
            found.append(SubsetScore(sequences=shown, score=macro, left_out=total - len(measured.studies)))
    return tuple(found)


def _save(folder: Path, arm: Arm, job: Job) -> None:
    save_network(
        folder,
        arm.net,
        sequences=job.sequences,
        absent=job.config.absent,
        thresholds=arm.thresholds,
        plan=job.store.plan,
        simulated=is_simulated(job.store, "train"),
        learned_from={row.subject for row in _learned(job)} if job.config.steps else set(),
        before=arm.before,
    )


def _learned(job: Job) -> list[StudyRow]:
    return [row for row in job.training.rows if row.split == "train" and row.has_mask]


def _seen_before(arm: Arm, job: Job) -> tuple[str, ...]:
    """Whether the network that this one goes on from had the masks of scored subjects."""
    if arm.before is None:
        return ()
    scored = {row.subject for row in job.store.rows if row.split == job.config.split}
    seen = arm.before.count_seen(scored)
    return (f"LEAK: the network before was trained on the masks of {seen} of the scored subjects.",) if seen else ()


def _predictions(measured: Measured) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(
            study=study,
            probabilities={},
            labels={region: float(measured.has[row, at]) for at, region in enumerate(measured.regions)},
            measures=measured.record(row),
        )
        for row, study in enumerate(measured.studies)
    )


def _notes(job: Job) -> tuple[str, ...]:
    """What the numbers leave out."""
    config = job.config
    kept = {row.subject for row in _learned(job)}
    regions = "; ".join(f"{name} = labels {', '.join(map(str, labels))}" for name, labels in job.regions.items())
    crops = "whole fields" if job.crop is None else f"crops of {job.crop}"
    window = "whole fields" if job.window is None else f"windows of {job.window}, overlap {config.overlap:g}"
    return (
        f"Regions: {regions}. Channels: {', '.join(job.sequences)}. Trained on {crops}, predicted in {window}.",
        f"Learned from {len(kept)} subjects with a mask (label fraction {config.label_fraction:g}); the thresholds use "
        "the masks of the whole val split.",
        "Scores are means over the studies that have the region in truth, on the store's grid. Where nothing was "
        "predicted there, Dice, NSD and lesion scores are 0 and HD95 is the diagonal of the field. Studies without the "
        "region count in false_positive_ml alone. Prevalence is the share of studies with the region.",
        f"NSD tolerance {job.tolerance_mm:g} mm, between centres of surface voxels. Lesions are 26-connected; one is "
        f"found at an IoU of {config.lesion_iou:g}; lesion Dice as BraTS 2023, without joining nearby lesions.",
    )
