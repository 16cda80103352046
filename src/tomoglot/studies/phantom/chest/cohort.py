"""A simulated chest CT from a seed and an index: a thorax with up to 18 findings, reconstructed once or twice.

Order and streams as in the other cohorts: the split first, then the scan, disease, anatomy, findings, truth, report
and last the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tomoglot.studies.phantom.chest import mediastinum, parenchyma
from tomoglot.studies.phantom.chest.disease import draw_findings, draw_ratio
from tomoglot.studies.phantom.chest.lungs import put_trees
from tomoglot.studies.phantom.chest.scan import Session, draw_session, put_table, reconstruct
from tomoglot.studies.phantom.chest.scene import FINDINGS, MASK_LABELS, Scene
from tomoglot.studies.phantom.chest.thorax import LOBES, Build, build_thorax, field_of_view
from tomoglot.studies.phantom.chest.tissue import draw_table
from tomoglot.studies.phantom.chest.wording import Finding, write_report
from tomoglot.studies.phantom.drawing import measure
from tomoglot.studies.phantom.simulated import SPLIT_FRACTIONS, Cohort, PhantomStudy, split_of, stream
from tomoglot.studies.study import Report, Volume

SEQUENCES = ("ct",)
AGAIN_SHARE = 0.15
LEAST_SHARE = 0.15  # of a part's voxels that a lobe or side must hold to be named
DOUBT_SHARE = 0.13


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chest:
    """One subject before any image is made: the same whether it is scanned or x-rayed."""

    subject: str
    split: str
    session: Session
    scene: Scene
    labels: dict[str, float]
    report: Report
    truth: dict[str, object]


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
    reconstruction_share: float = AGAIN_SHARE,
) -> PhantomStudy:
    """One simulated chest CT: a pure function of its arguments.

    In `reconstruction_share` of subjects the scan is reconstructed twice; `also` of the result is then the second, a
    study of its own with the same report, labels and mask. `only` restricts the disease to one finding, or to
    "normal"; `skull_stripped`, named for the brain, leaves out the table and the noise of the air about the body;
    `motion_mm` has no meaning here, since a scan is one breath-hold. Raises ValueError for a spacing outside 1 to 8 mm
    and for an unknown `only` or sequence.
    """
    if sequences is not None and tuple(sequences) != SEQUENCES:
        raise ValueError(f"there is no sequence {', '.join(sequences) or '(none asked)'}; there are {SEQUENCES[0]}")
    chest = draw_chest(
        seed, index, spacing_mm=spacing_mm, only=only, split_fractions=split_fractions,
        reconstruction_share=reconstruction_share,
    )  # fmt: skip
    scene, session = chest.scene, chest.session
    if not skull_stripped:
        put_table(scene.thorax)
    study: PhantomStudy | None = None
    for number, how in reversed(list(enumerate(session.series, 1))):
        rng = stream(seed, index, f"chest noise {number}")
        study = PhantomStudy(
            subject=chest.subject, study="ses-01" if number == 1 else f"ses-01r{number}", split=chest.split,
            volumes={"ct": reconstruct(scene.thorax, how, rng, half_mm=session.half_mm, air=not skull_stripped)},
            mask=Volume(voxels=scene.mask, affine=scene.thorax.grid.affine), report=chest.report, labels=chest.labels,
            truth=chest.truth | {"acquisition": {"ct": how.record()}, "reconstruction": number}, also=study,
        )  # fmt: skip
    assert study is not None
    return study


def draw_chest(
    seed: int,
    index: int,
    *,
    spacing_mm: float,
    only: str | None,
    split_fractions: Mapping[str, float],
    reconstruction_share: float = AGAIN_SHARE,
    called: str = "ct",
) -> Chest:
    """A subject's chest, what is wrong with it, and what a report says; `called` is how the report names the images."""
    split = split_of(seed, index, split_fractions)
    session = draw_session(stream(seed, index, "chest acquisition"), reconstruction_share)
    kinds = draw_findings(stream(seed, index, "chest disease"), only)
    scene = draw_scene(seed, index, spacing_mm=spacing_mm, kinds=kinds, breath=session.breath)
    doubts = stream(seed, index, "chest doubt").random(len(FINDINGS)) < DOUBT_SHARE
    doubted = {name for name, doubt in zip(FINDINGS, doubts, strict=True) if doubt and name != "medical_material"}
    findings = find(scene, kinds, doubted)
    present = {finding.type for finding in findings}
    absent = [name for name in FINDINGS if name not in present]
    labels = {name: float(name in present) for name in FINDINGS} | {"normal": float(not present)}
    rng = stream(seed, index, "chest report")
    report, told = write_report(findings, absent, rng=rng, test=split == "test", called=called)
    truth: dict[str, object] = {
        "simulated": True,
        "split": split,
        "labels": labels,
        "findings": [finding.record() for finding in findings],
        "absent": absent,
        "mask_labels": dict(MASK_LABELS),
        "sentences": [sentence.record() for sentence in told],
        "cardiothoracic_ratio": round(scene.thorax.ratio, 3),
        "dose": round(session.dose, 3),
        "breath": round(session.breath, 3),
    }
    # Subjects of the cohorts are different people, so that all may lie in one store.
    return Chest(
        subject=f"sub-C{index:04d}",
        split=split,
        session=session,
        scene=scene,
        labels=labels,
        report=report,
        truth=truth,
    )


def draw_scene(seed: int, index: int, *, spacing_mm: float, kinds: Sequence[str], breath: float) -> Scene:
    """The thorax with these findings, each drawn with a stream of its own."""
    ratio = draw_ratio(stream(seed, index, "chest heart"), wide="cardiomegaly" in kinds)
    fluid_mm = float(stream(seed, index, "chest pericardium").uniform(5, 15))
    build = Build(ratio=ratio, effusion_mm=fluid_mm if "pericardial_effusion" in kinds else 0.0, breath=breath)
    table = draw_table(stream(seed, index, "chest tissue"))
    thorax = build_thorax(field_of_view(spacing_mm), stream(seed, index, "chest anatomy"), table, build)
    empty = np.zeros(thorax.grid.shape, dtype=np.uint8)
    scene = Scene(thorax=thorax, build=build, mask=empty.copy(), instance=empty.copy())
    before = {**mediastinum.BEFORE, "pleural_effusion": parenchyma.pleural_effusion}
    for name, draw in before.items():
        if name in kinds:
            draw(scene, stream(seed, index, f"chest {name}"))
    scene.airways = put_trees(thorax, stream(seed, index, "chest trees"))
    for name, draw in {**parenchyma.DRAW, **mediastinum.AFTER}.items():
        if name in kinds:
            draw(scene, stream(seed, index, f"chest {name}"))
    return scene


def find(scene: Scene, kinds: Sequence[str], doubted: set[str]) -> list[Finding]:
    """Truth, measured from the mask: one finding of each kind that the mask really shows, and a wide heart."""
    thorax, found = scene.thorax, list[Finding]()
    for kind in kinds:
        numbers = [n for n, part in enumerate(scene.parts, 1) if part.type == kind and (scene.instance == n).any()]
        if not numbers and kind != "cardiomegaly":
            continue
        parts = [scene.instance == n for n in numbers]
        sizes = [measure(part, thorax.grid.affine) for part in parts]
        largest = max((size for size in sizes if size), key=lambda size: size.volume_ml, default=None)
        sides, lobes = set[str](), set[str]()
        for part in parts:
            right, within = float((thorax.seen[0][part] > 0).mean()), thorax.lobe[part]
            sides |= {side for side, share in (("right", right), ("left", 1 - right)) if share > LEAST_SHARE}
            shares = np.bincount(within, minlength=len(LOBES) + 1)[1:] / within.size
            lobes |= {name for name, share in zip(LOBES, shares, strict=True) if share > LEAST_SHARE}
        found.append(
            Finding(
                id=len(found),
                type=kind,
                side=sides.pop() if len(sides) == 1 else "both",
                lobes=tuple(name for name in LOBES if name in lobes),
                details=tuple(dict.fromkeys(scene.parts[n - 1].detail for n in numbers if scene.parts[n - 1].detail)),
                count=len(numbers),
                diameters_mm=tuple(round(d, 2) for d in largest.diameters_mm) if largest else (),
                volume_ml=round(sum(size.volume_ml for size in sizes if size), 4),
                centroid_mm=tuple(round(c, 2) for c in largest.centroid_mm) if largest else (),
                mask_labels=(MASK_LABELS[kind],) if kind in MASK_LABELS else (),
                uncertain=kind in doubted,
            )
        )
    return found


CHEST = Cohort(
    name="chest",
    generate=generate,
    findings=(*FINDINGS, "normal"),
    kinds=(*FINDINGS, "normal"),
    suffixes={"ct": "ct"},
    mask_labels=MASK_LABELS,
    colours={
        "lung_nodule": "#ff3322", "consolidation": "#ffcc33", "lung_opacity": "#ffee99", "atelectasis": "#ff8844",
        "emphysema": "#4db8ff", "mosaic_attenuation_pattern": "#88ccee", "interlobular_septal_thickening": "#b070ff",
        "bronchiectasis": "#33dd88", "peribronchial_thickening": "#99dd55", "pulmonary_fibrotic_sequela": "#dd77aa",
        "pleural_effusion": "#3377ff", "pericardial_effusion": "#22bbcc", "hiatal_hernia": "#cc8855",
        "lymphadenopathy": "#ff66cc", "arterial_wall_calcification": "#ffffff",
        "coronary_artery_wall_calcification": "#ddffdd", "medical_material": "#00ff00",
    },
    description="simulated chest CT (tomoglot phantom), not a person",
    form_code=1,
    level_mm=0.0,
    windows=(("lung", -1350.0, 150.0), ("soft tissue", -160.0, 240.0)),
)  # fmt: skip
