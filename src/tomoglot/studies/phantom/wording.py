"""Report text of a simulated study, derived from its truth and from the sequences acquired, never the reverse.

Every finding has several wordings; the last of each list is held out and only test subjects may use it. Every sentence
remembers which findings it speaks of and which it denies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from tomoglot.studies.phantom.sentences import Sentence, Writer, assemble, capitalised, size_cm
from tomoglot.studies.study import Report

SEQUENCE_WORDS: Mapping[str, str] = {
    "t1w": "T1-weighted",
    "t1c": "contrast-enhanced T1-weighted",
    "t2w": "T2-weighted",
    "flair": "FLAIR",
    "pd": "proton density",
    "dwi": "diffusion-weighted",
    "t2s": "T2*-weighted gradient echo",
}

# In the order in which they show a finding best.
SHOWN_BY: Mapping[str, tuple[str, ...]] = {
    "mass": ("t1c", "flair", "t2w", "t1w", "pd", "t2s", "dwi"),
    "oedema": ("flair", "t2w", "pd", "t1w", "t2s", "dwi", "t1c"),
    "demyelination": ("flair", "t2w", "t1w", "pd", "t1c", "t2s", "dwi"),
    "infarct": ("dwi", "flair", "t2w", "pd", "t2s", "t1w", "t1c"),
    "haemorrhage": ("t2s", "t1w", "t1c", "dwi", "flair", "t2w", "pd"),
    "volume_loss": ("t1w", "flair", "t2w", "t1c", "pd", "dwi", "t2s"),
    "midline_shift": ("t1w", "t2w", "flair", "t1c", "pd", "dwi", "t2s"),
}

FINDINGS: Mapping[str, tuple[str, ...]] = {
    "mass": (
        "There is a {size} cm {aspect} mass centred in the {place}.",
        "A {aspect} mass in the {place} measures {size} cm.",
        "{Place} {aspect} mass, {size} cm.",
        "Within the {place} lies a {aspect} space-occupying lesion of {size} cm.",
    ),
    "oedema": (
        "Surrounding signal abnormality in the {place} is in keeping with vasogenic oedema.",
        "There is vasogenic oedema in the {place}.",
        "{Place} oedema is present about the lesion.",
        "Oedema extends through the adjacent white matter of the {place}.",
    ),
    "demyelination": (
        "Multiple ({count}) periventricular and subcortical white matter lesions, the largest {largest} mm.",
        "There are {count} ovoid white matter lesions, mostly periventricular, measuring up to {largest} mm.",
        "{count} demyelinating plaques are seen in the white matter, the largest {largest} mm.",
        "White matter shows {count} plaques, chiefly beside the ventricles; the largest is {largest} mm across.",
    ),
    "infarct": (
        "{Aspect} in the {place} measuring {size} cm, consistent with {age}infarction.",
        "There is {aspect} in the {place}, {size} cm, in keeping with {an_age}infarct.",
        "{Place}: {aspect} of {size} cm, representing {age}infarction.",
        "{Aspect} of {size} cm involves the {place}, typical of {an_age}infarct.",
    ),
    "haemorrhage": (
        "A {size} cm {aspect} is present in the {place}.",
        "There is a {aspect} in the {place} measuring {size} cm.",
        "{Place} {aspect}, {size} cm.",
        "The {place} contains a {aspect} of {size} cm.",
    ),
    "volume_loss": (
        "There is {grade} generalised volume loss with ventricular enlargement.",
        "The ventricles and sulci are enlarged, in keeping with {grade} cerebral atrophy.",
        "{Grade} diffuse parenchymal volume loss is noted with prominent sulci.",
        "Sulci and ventricles are prominent for {grade} global atrophy.",
    ),
    "midline_shift": (
        "There is {shift} mm of midline shift to the {side}.",
        "The midline is displaced to the {side} by {shift} mm.",
        "{Side}ward midline shift of {shift} mm is present.",
        "Midline structures deviate {shift} mm towards the {side}.",
    ),
}

IMPRESSIONS: Mapping[str, tuple[str, ...]] = {
    "mass": (
        "{Place} {aspect} mass, suspicious for neoplasm.",
        "{Aspect} mass of the {place}, likely tumour.",
        "Findings favour a neoplasm of the {place}.",
    ),
    "oedema": ("Associated vasogenic oedema.", "Perilesional oedema.", "Reactive oedema of the white matter."),
    "demyelination": (
        "White matter lesions in a distribution typical of demyelination.",
        "Appearances are those of demyelinating disease.",
        "Plaques suggesting multiple sclerosis.",
    ),
    "infarct": ("{Age}{place} infarct.", "{Age}infarction of the {place}.", "{Age}ischaemic stroke, {place}."),
    "haemorrhage": (
        "{Place} intraparenchymal haemorrhage.",
        "Haemorrhage in the {place}.",
        "Bleed into the {place}.",
    ),
    "volume_loss": (
        "{Grade} cerebral volume loss.",
        "{Grade} generalised atrophy.",
        "Global brain shrinkage, {grade}.",
    ),
    "midline_shift": (
        "Midline shift to the {side}.",
        "Mass effect with {side}ward midline shift.",
        "Displacement of the midline, {side}.",
    ),
    "normal": ("Normal MRI of the brain.", "No intracranial abnormality.", "Unremarkable brain MRI."),
}

ABSENT: Mapping[str, tuple[str, ...]] = {
    "mass": ("mass", "space-occupying lesion", "tumour"),
    "oedema": ("cerebral oedema", "vasogenic oedema", "brain swelling"),
    "demyelination": ("white matter lesion", "demyelinating lesion", "plaque"),
    "infarct": ("infarction", "recent ischaemia", "ischaemic change"),
    "haemorrhage": ("intracranial haemorrhage", "haematoma", "blood products"),
    "midline_shift": ("midline shift", "shift of midline structures", "midline displacement"),
}
VENTRICLES = (
    "The ventricles are normal in size and configuration.",
    "Ventricles and sulci are normal for age.",
    "No volume loss.",
    "Ventricular size is unremarkable, without atrophy.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of the truth. Fields that do not apply are None or empty."""

    id: int
    type: str
    side: str | None = None
    lobe: str | None = None
    diameters_mm: tuple[float, ...] = ()
    volume_ml: float | None = None
    count: int = 1
    centroid_mm: tuple[float, ...] = ()
    mask_labels: tuple[int, ...] = ()
    shown_by: str = ""
    rim_enhancing: bool = False
    shift_mm: float | None = None
    grade: str | None = None

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        return asdict(self)


def place_of(finding: Finding) -> str:
    """Side and lobe in words."""
    nouns = {
        "insula": "insula",
        "deep": "deep grey and white matter",
        "cerebellum": "cerebellar hemisphere",
        "brainstem": "brainstem",
    }
    lobe = finding.lobe or ""
    return f"{finding.side} {nouns.get(lobe, lobe + ' lobe')}"


def aspect_of(finding: Finding, acquired: Sequence[str]) -> str:
    """How the finding looks, in words that only the acquired sequences allow."""
    match finding.type:
        case "mass" if "t1c" in acquired:
            return "ring-enhancing" if finding.rim_enhancing else "homogeneously enhancing"
        case "mass" if finding.rim_enhancing and {"flair", "t2w"} & set(acquired):
            return "heterogeneous, centrally necrotic"
        case "mass":
            return "heterogeneous" if finding.rim_enhancing else "solid"
        case "infarct" if "dwi" in acquired:
            return "restricted diffusion"
        case "infarct" if "flair" in acquired:
            return "FLAIR hyperintensity with loss of grey-white distinction"
        case "infarct":
            return "signal abnormality with loss of grey-white distinction"
        case "haemorrhage" if "t2s" in acquired:
            return "haematoma with susceptibility"
        case "haemorrhage":
            return "haematoma"
    return ""


def words_for(finding: Finding, acquired: Sequence[str]) -> dict[str, str]:
    """Everything a wording may ask for."""
    acute = finding.type == "infarct" and "dwi" in acquired
    words = {
        "place": place_of(finding) if finding.lobe else "",
        "size": size_cm(finding.diameters_mm) if len(finding.diameters_mm) == 3 else "",
        "aspect": aspect_of(finding, acquired),
        "count": str(finding.count),
        "largest": f"{finding.diameters_mm[0]:.0f}" if finding.diameters_mm else "",
        "side": finding.side or "",
        "shift": f"{finding.shift_mm:.0f}" if finding.shift_mm else "",
        "grade": finding.grade or "",
        "age": "acute " if acute else "",
        "an_age": "an acute " if acute else "an ",
    }
    return capitalised(words)


def write_report(
    findings: Sequence[Finding], absent: Sequence[str], acquired: Sequence[str], *, rng: np.random.Generator, test: bool
) -> tuple[Report, list[Sentence]]:
    """The report of a study and its sentences.

    TECHNIQUE names the acquired sequences and nothing else does; FINDINGS tells and denies; IMPRESSION sums up.
    """
    writer = Writer(rng, test=test)
    told = [writer.sentence(FINDINGS[f.type], f.id, "findings", words_for(f, acquired)) for f in findings]
    body = told + writer.denials(absent, ABSENT)
    if "volume_loss" in absent and rng.random() < 0.8:
        text, held_out = writer.choose(VENTRICLES)
        body.append(Sentence(text=text, section="findings", denies=("volume_loss",), held_out=held_out))
    summed = [writer.sentence(IMPRESSIONS[f.type], f.id, "impression", words_for(f, acquired)) for f in findings]
    if not findings:
        text, held_out = writer.choose(IMPRESSIONS["normal"])
        summed = [Sentence(text=text, section="impression", held_out=held_out)]
    names = ", ".join(SEQUENCE_WORDS[name] for name in acquired)
    return assemble(f"Simulated brain MRI: {names}.", body, summed), [*body, *summed]
