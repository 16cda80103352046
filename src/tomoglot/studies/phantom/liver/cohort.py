"""A simulated liver study from a seed and an index: eight series of an abdomen with none or some of seven lesions.

Order and streams as in the brain cohort: the split first, then the visit, anatomy, disease, lesions, truth, images and
last the report. `normal` means no focal lesion; a fatty liver is a variation, told in report and truth, not a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.phantom.drawing import Measured, measure
from tomoglot.studies.phantom.liver.lesions import MASK_LABELS, MASKS, Plan, draw, draw_kinds, draw_plans
from tomoglot.studies.phantom.liver.scan import acquire, draw_session
from tomoglot.studies.phantom.liver.torso import Torso, build_torso, field_of_view, segment_of
from tomoglot.studies.phantom.liver.wording import Finding, can_be_named, write_report
from tomoglot.studies.phantom.simulated import SPLIT_FRACTIONS, Cohort, PhantomStudy, split_of, stream
from tomoglot.studies.study import Volume

FINDINGS = (*MASKS, "normal")
LOBES: Mapping[str, str] = {"I": "caudate", "II": "left", "III": "left", "IV": "left"}
SUFFIXES: Mapping[str, str] = {
    "t2w": "T2w", "dwi": "dwi", "in_phase": "inphase", "out_of_phase": "outofphase", "pre_contrast": "precontrast",
    "arterial": "arterial", "portal_venous": "portalvenous", "delayed": "delayed",
}  # fmt: skip
LEAST_VOXELS = 2


def draw_fats(rng: np.random.Generator) -> tuple[float, float]:
    """Share of fat in liver (a third of livers are steatotic, 0.08 to 0.28) and in carcinoma (a quarter hold some)."""
    steatotic, fatty = rng.random() < 0.33, rng.random() < 0.25
    low, high, tumour = rng.uniform(0.0, 0.04), rng.uniform(0.08, 0.28), rng.uniform(0.12, 0.3)
    return float(high if steatotic else low), float(tumour if fatty else 0.0)


def generate(
    seed: int,
    index: int,
    *,
    spacing_mm: float = 2.0,
    only: str | None = None,
    split_fractions: Mapping[str, float] = SPLIT_FRACTIONS,
    skull_stripped: bool = True,
    motion_mm: float = 2.0,
    sequences: Sequence[str] | None = None,
) -> PhantomStudy:
    """One simulated liver study: a pure function of its arguments.

    `only` restricts the disease ("normal", or a kind of lesion); `motion_mm` is the deviation of the breath-hold of a
    dynamic phase from that of the portal venous phase, in which mask and truth are (twice as much for T2 and
    diffusion); `skull_stripped`, named for the brain, sets what is outside the body to zero; `sequences` are those that
    may be acquired (None: all). Raises ValueError for a spacing outside 1 to 8 mm, and an unknown `only` or sequence.
    """
    split = split_of(seed, index, split_fractions)
    session = draw_session(stream(seed, index, "liver acquisition"), sequences)
    kinds = draw_kinds(stream(seed, index, "liver disease"), only)
    fats = draw_fats(stream(seed, index, "liver fat"))
    torso = build_torso(field_of_view(spacing_mm), stream(seed, index, "liver anatomy"))
    plans = draw_plans(stream(seed, index, "liver places"), torso, kinds)
    mask, instance = draw(torso, stream(seed, index, "liver lesions"), plans)
    acquired = tuple(session.series)
    findings = find(torso, instance, plans, acquired, lesion_fat=fats[1])
    present = {finding.type for finding in findings}
    absent = [name for name in MASKS if name not in present]
    labels = {name: float(name in present) for name in MASKS} | {"normal": float(not present)}
    report, told = write_report(
        findings, absent, acquired, liver_fat=fats[0], rng=stream(seed, index, "liver report"), test=split == "test"
    )  # fmt: skip
    volumes = acquire(
        torso, session, stream(seed, index, "liver noise"), fats=fats, motion_mm=motion_mm, air=not skull_stripped
    )  # fmt: skip
    shifts = {name: round(motion_mm * share, 2) for name, share in session.breath.items()}
    truth = {
        "simulated": True,
        "split": split,
        "labels": labels,
        "findings": [finding.record() for finding in findings],
        "absent": absent,
        "mask_labels": dict(MASK_LABELS),
        "sentences": [sentence.record() for sentence in told],
        "acquisition": {name: how.record() | {"breath_mm": shifts[name]} for name, how in session.series.items()},
        "field_t": session.scanner.field_t,
        "seconds": {name: round(getattr(session.timing, name), 1) for name in ("arterial", "portal_venous", "delayed")},
        "liver_fat": round(fats[0], 3),
    }
    # Subjects of the two cohorts are different people, so that both may lie in one store.
    return PhantomStudy(
        subject=f"sub-L{index:04d}", study="ses-01", split=split, volumes=volumes,
        mask=Volume(voxels=mask, affine=torso.grid.affine), report=report,
        labels=labels, truth=truth,
    )  # fmt: skip


def find(
    torso: Torso, instance: NDArray[np.uint8], plans: Sequence[Plan], acquired: tuple[str, ...], *, lesion_fat: float
) -> list[Finding]:
    """Truth, measured from the mask: one finding for each kind of lesion that the mask really shows."""
    measured: dict[str, list[tuple[Measured, str]]] = {}
    for number, plan in enumerate(plans, 1):
        where = instance == number
        size = measure(where, torso.grid.affine) if where.sum() >= LEAST_VOXELS else None
        if size is not None:
            seen = torso.seen[:, where].mean(axis=1)
            measured.setdefault(plan.kind, []).append((size, str(segment_of(seen[None])[0])))
    found: list[Finding] = []
    for kind, parts in measured.items():
        parts.sort(key=lambda part: -part[0].volume_ml)
        largest, segment = parts[0]
        lobes = {LOBES.get(place, "right") for _, place in parts}
        found.append(
            Finding(
                id=len(found),
                type=kind,
                side=lobes.pop() if len(lobes) == 1 else "both",
                segment=segment,
                segments=tuple(sorted({place for _, place in parts})),
                count=len(parts),
                diameters_mm=tuple(round(d, 2) for d in largest.diameters_mm),
                volume_ml=round(sum(size.volume_ml for size, _ in parts), 4),
                centroid_mm=tuple(round(x, 2) for x in largest.centroid_mm),
                mask_labels=(MASK_LABELS[MASKS[kind]],),
                rim=kind == "hcc" and any(plan.rim for plan in plans if plan.kind == kind),
                fat=lesion_fat if kind == "hcc" else 0.0,
                named=can_be_named(kind, acquired),
            )
        )
    return found


LIVER = Cohort(
    name="liver",
    generate=generate,
    findings=FINDINGS,
    kinds=("hcc", "icc", "metastasis", "cyst", "haemangioma", "fnh", "abscess", "normal"),
    suffixes=SUFFIXES,
    mask_labels=MASK_LABELS,
    colours={"hcc": "#ff3322", "icc": "#ffcc33", "liver_metastasis": "#ff66cc", "liver_cyst": "#4db8ff",
             "haemangioma": "#b070ff", "fnh": "#33dd88", "liver_abscess": "#ff8844"},
    description="simulated liver MRI (tomoglot phantom), not a person",
    form_code=1,
    level_mm=10.0,
    motion_mm=2.0,
)  # fmt: skip
