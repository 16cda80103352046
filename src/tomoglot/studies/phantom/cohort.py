"""A simulated brain study from a seed and an index.

Order: the split is decided first, then disease, anatomy, lesions, truth, images, and last the report, which derives
from the truth. Every step has a generator of its own, so that a change in one never moves another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from tomoglot.studies.phantom.acquire import acquire, draw_acquisitions
from tomoglot.studies.phantom.anatomy import Head, build_head
from tomoglot.studies.phantom.brain import lobe_of, template
from tomoglot.studies.phantom.disease import PRIMARY, Disease, draw_disease, draw_kinds
from tomoglot.studies.phantom.drawing import measure
from tomoglot.studies.phantom.lesions import (
    MASK_LABELS,
    Canvas,
    draw_haemorrhage,
    draw_infarct,
    draw_mass,
    draw_plaque,
)
from tomoglot.studies.phantom.simulated import SPLIT_FRACTIONS, Cohort, PhantomStudy, split_of, stream
from tomoglot.studies.phantom.wording import SHOWN_BY, Finding, write_report
from tomoglot.studies.study import Volume

FINDINGS = ("mass", "demyelination", "infarct", "haemorrhage", "volume_loss", "oedema", "midline_shift", "normal")
SUFFIXES: Mapping[str, str] = {
    "t1w": "T1w",
    "t1c": "ce-gadolinium_T1w",
    "t2w": "T2w",
    "flair": "FLAIR",
    "pd": "PDw",
    "dwi": "dwi",
    "t2s": "T2starw",
}
LEAST_SHIFT_MM = 2.5
LEAST_OEDEMA_ML = 0.5
LABELS_OF: Mapping[str, tuple[str, ...]] = {
    "mass": ("necrosis", "rim"),
    "oedema": ("oedema",),
    "demyelination": ("plaque",),
    "infarct": ("infarct",),
    "haemorrhage": ("blood",),
}


def generate(
    seed: int,
    index: int,
    *,
    spacing_mm: float = 2.0,
    only: str | None = None,
    split_fractions: Mapping[str, float] = SPLIT_FRACTIONS,
    skull_stripped: bool = True,
    motion_mm: float = 0.0,
    sequences: Sequence[str] | None = None,
) -> PhantomStudy:
    """One simulated study: a pure function of its arguments.

    `only` restricts the disease ("normal" makes a control); `motion_mm` moves each series rigidly by about so much;
    `sequences` are those that may be acquired (None: all). Raises ValueError for a spacing outside 1 to 8 mm, for an
    unknown `only` or sequence, and when nilearn's maps are not installed.
    """
    split = split_of(seed, index, split_fractions)
    base = template(spacing_mm)
    rng = stream(seed, index, "disease")
    disease = draw_disease(rng, base, draw_kinds(rng, only))
    anatomy = stream(seed, index, "anatomy")
    head = build_head(base, anatomy, volume_loss=disease.volume_loss, effects=disease.effects)
    canvas = draw(head, disease, stream(seed, index, "lesions"))
    plan = draw_acquisitions(stream(seed, index, "acquisition"), sequences)
    acquired = tuple(plan)
    findings = find(canvas, disease, acquired)
    present = {finding.type for finding in findings}
    labels = {name: float(name in present) for name in FINDINGS}
    labels["normal"] = float(not present)
    absent = [name for name in FINDINGS if name != "normal" and name not in present]
    report, told = write_report(findings, absent, acquired, rng=stream(seed, index, "report"), test=split == "test")
    volumes = acquire(
        canvas.fractions, base.grid, plan, stream(seed, index, "noise"),
        skull_stripped=skull_stripped, motion_mm=motion_mm,
    )  # fmt: skip
    truth = {
        "simulated": True,
        "split": split,
        "labels": labels,
        "findings": [finding.record() for finding in findings],
        "absent": absent,
        "mask_labels": dict(MASK_LABELS),
        "sentences": [sentence.record() for sentence in told],
        "acquisition": {name: how.record() for name, how in plan.items()},
        "skull_stripped": skull_stripped,
    }
    return PhantomStudy(
        subject=f"sub-{index:04d}",
        study="ses-01",
        split=split,
        volumes=volumes,
        mask=Volume(voxels=canvas.mask, affine=base.grid.affine),
        report=report,
        labels=labels,
        truth=truth,
    )


def draw(head: Head, disease: Disease, rng: np.random.Generator) -> Canvas:
    """Draw every lesion. Owners: lesion n owns instance 2n+1, its oedema 2n+2; all plaques share one owner."""
    canvas = Canvas.of(head)
    first_plaque: int | None = None
    for number, plan in enumerate(disease.lesions):
        owner = 2 * number + 1
        match plan.kind:
            case "demyelination":
                first_plaque = first_plaque or owner
                draw_plaque(canvas, rng, plan, first_plaque)
            case "infarct":
                draw_infarct(canvas, rng, plan, owner)
            case "haemorrhage":
                draw_haemorrhage(canvas, rng, plan, owner, halo_owner=owner + 1)
            case "mass":
                draw_mass(canvas, rng, plan, owner, halo_owner=owner + 1)
    return canvas


def find(canvas: Canvas, disease: Disease, acquired: tuple[str, ...]) -> list[Finding]:
    """Truth, measured from what was drawn: every finding that the mask or the displacement really shows."""
    kinds: dict[int, str] = {}
    for number, plan in enumerate(disease.lesions):
        if plan.kind != "demyelination" or "demyelination" not in kinds.values():
            kinds[2 * number + 1] = plan.kind
        if plan.oedema_mm:
            kinds[2 * number + 2] = "oedema"
    found: list[Finding] = []
    for owner, kind in kinds.items():
        finding = measured_finding(canvas, owner, kind, len(found), acquired)
        if finding is not None:
            found.append(finding)
    if disease.volume_loss:
        grade = "mild" if disease.volume_loss < 0.6 else "moderate" if disease.volume_loss < 0.8 else "severe"
        found.append(
            Finding(id=len(found), type="volume_loss", grade=grade, shown_by=shown_by("volume_loss", acquired))
        )
    shift_mm = canvas.head.midline_shift_mm
    if abs(shift_mm) >= LEAST_SHIFT_MM:
        found.append(
            Finding(
                id=len(found),
                type="midline_shift",
                side="right" if shift_mm > 0 else "left",
                shift_mm=abs(shift_mm),
                shown_by=shown_by("midline_shift", acquired),
            )
        )
    return found


def measured_finding(
    canvas: Canvas, owner: int, kind: str, number: int, acquired: tuple[str, ...]
) -> Finding | None:  # fmt: skip
    """The finding that owns part of the mask; None when nothing of it is left, or only a trace of oedema."""
    mask = canvas.instance == owner
    size = measure(mask, canvas.head.grid.affine)
    if size is None or (kind == "oedema" and size.volume_ml < LEAST_OEDEMA_ML):
        return None
    seen = canvas.head.seen_mm(size.centroid_mm)
    labels = tuple(sorted({int(value) for value in np.unique(canvas.mask[mask])}))
    plaques = kind == "demyelination"
    count, diameters = 1, size.diameters_mm
    if plaques:
        parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
        largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        part = measure(parts == largest, canvas.head.grid.affine)
        assert part is not None
        diameters = part.diameters_mm
    return Finding(
        id=number,
        type=kind,
        side=None if plaques else ("right" if size.centroid_mm[0] > 0 else "left"),
        lobe=None if plaques else str(lobe_of(seen[None])[0]),
        diameters_mm=tuple(round(d, 2) for d in diameters),
        volume_ml=round(size.volume_ml, 4),
        count=int(count),
        centroid_mm=tuple(round(x, 2) for x in size.centroid_mm),
        mask_labels=labels,
        shown_by=shown_by(kind, acquired),
        rim_enhancing=kind == "mass" and MASK_LABELS["necrosis"] in labels,
    )


def shown_by(kind: str, acquired: tuple[str, ...]) -> str:
    """The acquired sequence that shows a finding best."""
    return next(name for name in SHOWN_BY[kind] if name in acquired)


BRAIN = Cohort(
    name="brain",
    generate=generate,
    findings=FINDINGS,
    kinds=tuple(PRIMARY),
    suffixes=SUFFIXES,
    mask_labels=MASK_LABELS,
    colours={"necrosis": "#b070ff", "rim": "#ffcc33", "oedema": "#4db8ff", "plaque": "#33dd88", "infarct": "#ff66cc",
             "blood": "#ff3322"},
    description="simulated brain MRI (tomoglot phantom), not a person",
    form_code=4,
    level_mm=14.0,
)  # fmt: skip
