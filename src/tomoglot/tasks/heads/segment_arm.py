"""One arm of the segmentation task: what it is given, how it is trained, and what it predicts and measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tomoglot.batches.batch import Batch
from tomoglot.batches.loader import Loader, LoaderConfig, StudySource
from tomoglot.batches.sample import centred_start, crop_affine
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.store.catalogue import StudyRow
from tomoglot.tasks.embeddings import Progress
from tomoglot.tasks.heads.network import NetworkCard, load_network
from tomoglot.tasks.heads.segmenter import LesionCrops, Segmenter, build_segmenter, templates_of, zeros
from tomoglot.tasks.heads.window import slide, with_flips
from tomoglot.tasks.maps.native import write_region
from tomoglot.tasks.scores.regions import Measured, Regions, ThresholdChooser, measure_region
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH
from tomoglot.training import TrainState, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tomoglot.tasks.segmentation import Config

Box = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What all arms share. `field` holds every study whole; smaller ones are filled up with zeros."""

    config: Config
    store: StudySource
    training: StudySource
    sequences: tuple[str, ...]
    regions: Regions
    field: Box
    tolerance_mm: float

    def loader(self, *, split: str, train: bool = False, store: StudySource | None = None) -> Loader:
        """Whole fields with their masks."""
        config = self.config
        settings = LoaderConfig(
            batch_size=config.batch_size if train else 1,
            crop_voxels=self.field,
            sequences=self.sequences,
            workers=config.workers,
            seed=config.seed,
            augment=config.augment,
            drop_sequence_probability=config.drop_sequence_probability,
            masks=True,
        )
        return Loader(store or self.store, settings, split=split, train=train)

    @property
    def crop(self) -> Box | None:
        """Training crop, None where it would hold the whole field."""
        crop = self.config.crop_voxels
        if crop is None or all(edge >= size for edge, size in zip(crop, self.field, strict=True)):
            return None
        i, j, k = (min(edge, size) for edge, size in zip(crop, self.field, strict=True))
        return i, j, k

    @property
    def window(self) -> Box | None:
        """Inference window, None for the whole field at once."""
        return None if self.config.whole_field else self.crop


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arm:
    """A trained network, the threshold of each region, and the network that it goes on from, if any."""

    net: Segmenter
    device: torch.device
    thresholds: tuple[float, ...]
    notes: tuple[str, ...]
    before: NetworkCard | None = None


def fit_arm(recipe: Recipe, job: Job, *, pretrained: bool, progress: Progress) -> Arm:
    """Train one arm, and choose its thresholds."""
    config, schedule = job.config, job.config.schedule
    fabric = schedule.fabric()
    fabric.launch()
    # Templates are learned: the arm from scratch must do without them.
    filler = config.absent if pretrained else "zero"
    net, coverage = build_segmenter(
        recipe,
        job.sequences,
        job.regions,
        pretrained=pretrained,
        input_weights=config.input_weights,
        from_sequence=config.from_sequence,
        seed=config.seed,
        stand_in=templates_of(recipe, fabric.device) if filler == "template" else zeros,
        deep_supervision=config.deep_supervision,
        dice_weight=config.dice_weight,
        cross_entropy_weight=config.cross_entropy_weight,
        over_batch=config.over_batch,
        consistency_weight=config.consistency_weight,
        consistency_on=config.consistency_on,
        frozen=config.frozen,
    )
    came = "nothing was loaded" if coverage is None else f"encoder weights: {coverage.describe()}"
    before = None
    if pretrained and config.network is not None:
        before = load_network(config.network, net, sequences=job.sequences, plan=job.store.plan)
        came = f"goes on from the trained network {config.network.name}"
    came += "; it stays frozen" if config.frozen else ""
    net.to(fabric.device)
    seconds = _train(net, job, schedule, fabric=fabric, progress=progress) if config.steps else [0.0]
    name = MODEL if pretrained else SCRATCH
    notes = (
        f"{name}: {config.steps} steps of {config.batch_size} studies, {np.median(seconds):.3g} s a step, in all "
        f"{sum(seconds):.0f} s on {fabric.device.type}; absent sequences: {filler}; {came}.",
    )
    arm = Arm(net=net.eval(), device=fabric.device, thresholds=(), notes=notes, before=before)
    return with_thresholds(arm, job, name=name)


def _train(net: Segmenter, job: Job, schedule: Schedule, *, fabric: Fabric, progress: Progress) -> list[float]:
    """Run the loop; returns the seconds of each step, reading included."""
    batches = job.loader(split="train", train=True, store=job.training)
    share, seed = job.config.lesion_share, job.config.seed
    crops = LesionCrops(batches, job.crop, job.regions, lesion_share=share, seed=seed) if job.crop else batches
    seconds, began = [], time.perf_counter()
    # Only the network's own draws come from the global generator, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for made in train(net, crops, schedule, fabric=fabric, state=TrainState.fresh(net, schedule)):
            seconds.append(time.perf_counter() - began)
            progress(made.number, schedule.steps)
            began = time.perf_counter()
    return seconds


def predict_fields(
    arm: Arm, job: Job, *, split: str, shown: Sequence[str] | None = None, blind: bool = False
) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Every study of a split, one at a time, with the probabilities (r, i, j, k) of its field.

    With `shown` only those sequences count as acquired, and studies with none of them are passed by. `blind` removes
    the image.
    """
    hidden = torch.tensor([shown is not None and name not in shown for name in job.sequences])
    predict: Callable[[torch.Tensor], torch.Tensor] = arm.net.probabilities
    if job.config.flips:
        predict = with_flips(predict)
    for batch in job.loader(split=split):
        acquired = batch.acquired & ~hidden
        if not acquired.any():
            continue
        with torch.inference_mode():
            volumes = arm.net.fill(replace(batch, acquired=acquired).to(arm.device))
            if blind:
                volumes = torch.zeros_like(volumes)
            found = slide(predict, volumes, window=job.window, overlap=job.config.overlap)
        yield batch, found[0].float().cpu().numpy()


def with_thresholds(arm: Arm, job: Job, *, name: str = IMAGE_REMOVED, blind: bool = False) -> Arm:
    """Choose the threshold of each region on the val split: nothing of the scored split has a say."""
    chooser = ThresholdChooser(len(job.regions))
    if any(row.split == "val" and row.has_mask and set(row.sequences) & set(job.sequences) for row in job.store.rows):
        for batch, probabilities in predict_fields(arm, job, split="val", blind=blind):
            true = _truth(batch, job.regions)
            if true is not None:
                chooser.add(probabilities, true)
    chosen = chooser.choose()
    unknown = [region for region, value in zip(job.regions, chosen, strict=True) if value is None]
    usual = arm.before.thresholds if arm.before is not None else (0.5,) * len(chosen)
    thresholds = tuple(usual[at] if value is None else value for at, value in enumerate(chosen))
    said = ", ".join(f"{region} {value:.2f}" for region, value in zip(job.regions, thresholds, strict=True))
    note = f"{name}: thresholds from the val split: {said}"
    note += f" (not chosen but set, since val lacks them: {', '.join(unknown)})." if unknown else "."
    return replace(arm, thresholds=thresholds, notes=(*arm.notes, note))


def measure_arm(
    arm: Arm, job: Job, *, out: Path | None = None, shown: Sequence[str] | None = None, blind: bool = False
) -> Measured:
    """Every study of the scored split with a mask; with `out` every prediction is written, mask or not."""
    rows = {row.key: row for row in job.store.rows}
    found, studies, subjects = [], list[str](), list[int]()
    for batch, probabilities in predict_fields(arm, job, split=job.config.split, shown=shown, blind=blind):
        row = rows[batch.studies[0]]
        if out is not None:
            _write(out, row, probabilities, arm=arm, job=job)
        true = _truth(batch, job.regions)
        if true is None:
            continue
        called = probabilities >= np.array(arm.thresholds, dtype=np.float32)[:, None, None, None]
        limits = {"tolerance_mm": job.tolerance_mm, "least_iou": job.config.lesion_iou}
        found.append(
            {
                region: measure_region(called[at], true[at], spacing_mm=row.spacing_mm, **limits)
                for at, region in enumerate(job.regions)
            }
        )
        studies.append(row.key)
        subjects.append(int(batch.subjects[0]))
    return Measured.of(found, regions=tuple(job.regions), studies=studies, subjects=subjects)


def _truth(batch: Batch, regions: Regions) -> NDArray[np.bool_] | None:
    """True regions (r, i, j, k) of the one study of a batch, or None where it has no mask."""
    assert batch.masks is not None and len(batch) == 1
    mask = batch.masks[0].numpy()
    return None if mask.min() < 0 else np.stack([np.isin(mask, labels) for labels in regions.values()])


def _write(out: Path, row: StudyRow, probabilities: NDArray[np.float32], *, arm: Arm, job: Job) -> None:
    affine = crop_affine(np.asarray(row.affine), centred_start(row.shape, job.field))
    for at, region in enumerate(job.regions):
        write_region(
            out / f"{row.key}_{region}.nii.gz",
            probabilities[at],
            affine,
            row.native_grid,
            threshold=arm.thresholds[at],
            simulated=row.simulated,
        )
