r"""Segment real multiple-sclerosis lesions after training on simulated ones, then adapt with one real subject.

    tomoglot phantom brain --only demyelination --subjects 160 --seed 21 --spacing-mm 2 --out work/plaques
    python examples/real_ms_lesions.py --simulated work/plaques --real path/to/open_ms --work work/ms \
        --out results/real_ms.md --pictures results

The real subjects are people with multiple sclerosis (Lesjak et al. 2017, doi 10.1007/s12021-017-9348-7, CC BY). Two of
them have a lesion mask: far too few for an interval, so each is reported by itself. Research use only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from tomoglot.checkpoint import load_checkpoint
from tomoglot.geometry import resample
from tomoglot.run import RunConfig, pretrain
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import read_nifti
from tomoglot.studies.source import Sources, read_source
from tomoglot.studies.study import Study
from tomoglot.tasks import segmentation
from tomoglot.tasks.task import TaskResult

SEQUENCES = ("flair", "t1c", "t1w", "t2w")
PLAN = Plan(spacing_mm=(2.0, 2.0, 2.0), field_voxels=(80, 96, 80))
# Contrast, noise and absent sequences vary widely in training: the simulated images look more alike than real ones.
VARIED = [f"augment.{name}" for name in ("gamma=0.5", "scale=0.2", "shift=0.3", "noise=0.3", "jitter_voxels=4")]
MEASURES = ("dice", "lesion_f1", "volume_true_ml", "volume_predicted_ml")


def main() -> None:
    """Prepare, pre-train, fine-tune on simulated lesions, predict, adapt, draw, write a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("simulated", "real", "work", "out", "pictures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--pretrain-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--adapt-steps", type=int, default=100)
    given = parser.parse_args()
    real = [replace(study, split="test") for study in read_source(given.real).studies]
    store = prepare(given.work / "store", [*read_source(given.simulated).studies, *real])
    run = given.work / "brainmvp"
    run_settings = [f"schedule.steps={given.pretrain_steps}", "loader.crop_voxels=[32,32,32]", "loader.batch_size=16"]
    pretrain(RunConfig.named("brainmvp:tiny").set(run_settings), given.work / "store", run)
    model = load_checkpoint(run)
    config = segmentation.Config(steps=given.steps, sequences=SEQUENCES, regions=("plaque",)).set(
        [
            *("crop_voxels=[32,32,32]", "batch_size=6", "whole_field=true", "lesion_share=0.7", "learning_rate=0.003"),
            *("drop_sequence_probability=0.2", *VARIED),
        ]
    )
    pages = {}
    first = segmentation.score(model, store, config, out=given.work / "simulated_only")
    pages["trained on simulated lesions only"] = (first, store)
    masked = [study for study in real if study.mask is not None]
    for one in masked:
        # Its own mask is the only real one that is learned from; everybody else is scored or at least predicted.
        name = f"adapted-{one.subject}"
        roles = [replace(study, split="train" if study is one else "test") for study in real]
        adapted = prepare(given.work / name, roles)
        more = config.but(
            network=given.work / "simulated_only" / "network",
            steps=given.adapt_steps,
            learning_rate=2e-4,
            batch_size=4,
            # One subject: crops are drawn evenly, or the network would learn that everybody has as many lesions.
            lesion_share=0.2,
        )
        found = segmentation.score(model, adapted, more, out=given.work / f"{name}-predicted")
        pages[f"then adapted with {one.subject}"] = (found, adapted)
    given.out.write_text(page(pages, masked), encoding="utf-8")
    folders = {"simulated only": given.work / "simulated_only"}
    folders |= {f"adapted with {one.subject}": given.work / f"adapted-{one.subject}-predicted" for one in masked}
    stores = [store, *(found[1] for found in list(pages.values())[1:])]
    draw(
        dict(zip(folders, zip(folders.values(), stores, strict=True), strict=True)),
        real,
        given.pictures / "real_ms.png",
    )


def prepare(out: Path, studies: list[Study]) -> Store:
    """Write and open a store on the common grid."""
    write_store(Sources(studies=studies, rejected=[]), out, PLAN, workers=2)
    return Store.open(out)


def page(pages: Mapping[str, tuple[TaskResult, Store]], masked: list[Study]) -> str:
    """A table of every real subject with a mask, the simulated ones beside it, and what was noted."""
    people = {study.subject for study in masked}
    lines = ["| training | scored | studies | Dice | lesion F1 | true ml | predicted ml |", "|---" * 7 + "|"]
    for title, (result, store) in pages.items():
        rows = {row.key: row for row in store.rows}
        groups: dict[str, list[Mapping[str, float]]] = {}
        for found in result.predictions:
            row = rows[found.study]
            if row.subject in people or row.simulated:
                name = "simulated, held out" if row.simulated else row.subject
                groups.setdefault(name, []).append(found.measures)
        for name, measures in sorted(groups.items()):
            means = [np.nanmean([one.get(f"plaque/{what}", np.nan) for one in measures]) for what in MEASURES]
            cells = [f"{means[0]:.3f}", f"{means[1]:.3f}", *(f"{value:.1f}" for value in means[2:])]
            lines.append(f"| {title} | {name} | {len(measures)} | " + " | ".join(cells) + " |")
    notes = [f"- {title}: {note}" for title, (result, _) in pages.items() for note in result.notes]
    return "\n".join([*lines, "", *notes, ""])


def draw(folders: Mapping[str, tuple[Path, Store]], real: list[Study], path: Path) -> None:
    """FLAIR of each real study with the true outline (green) and the predicted one (red), one column a training."""
    figure, axes = plt.subplots(len(real), len(folders), figsize=(3 * len(folders), 3 * len(real)), squeeze=False)
    for line, study in zip(axes, real, strict=True):
        flair = read_nifti(next(one.path for one in study.series if one.sequence == "flair"))
        true = None if study.mask is None else read_nifti(study.mask, allow_constant=True).voxels > 0
        for axis, (title, (folder, store)) in zip(line, folders.items(), strict=True):
            axis.set_axis_off()
            key = next((row.key for row in store.rows if (row.subject, row.study) == (study.subject, study.study)), "")
            file = folder / f"{key}_plaque.nii.gz"
            there = read_nifti(file, allow_constant=True) if file.is_file() else None
            predicted = None if there is None else there.voxels > 0
            # What is predicted lies on the grid of one series of the study, which need not be FLAIR's.
            grey = flair.voxels if there is None else resample(flair.voxels, flair.affine, there.grid)
            shown = true if true is not None else predicted
            at = grey.shape[2] // 2 if shown is None or not shown.any() else int(shown.sum(axis=(0, 1)).argmax())
            axis.imshow(np.rot90(grey[:, :, at]), cmap="gray", vmin=0, vmax=np.percentile(grey[grey > 0], 99.5))
            for mask, colour in ((true, "lime"), (predicted, "red")):
                if mask is not None and mask[:, :, at].any():
                    axis.contour(np.rot90(mask[:, :, at]), levels=[0.5], colors=colour, linewidths=0.7)
            learned = "" if predicted is not None else " (learned from)"
            axis.set_title(f"{study.subject} {study.study}\n{title}{learned}", size=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    main()
