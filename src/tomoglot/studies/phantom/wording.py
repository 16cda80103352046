"""Report text of a simulated study, derived from its truth and from the sequences acquired, never the reverse.

Every finding has several wordings; the last of each list is held out and only test subjects may use it. Every sentence
remembers which findings it speaks of and which it denies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

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
DENIALS = ("There is no {what}.", "No evidence of {what}.", "No {what} is seen.", "{What}: none.")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One sentence of a report: section, ids of the findings it tells, types it denies, whether held out."""

    text: str
    section: str
    findings: tuple[int, ...] = ()
    denies: tuple[str, ...] = ()
    held_out: bool = False

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        told = {"text": self.text, "section": self.section, "held_out_wording": self.held_out}
        return told | {"findings": list(self.findings), "denies": list(self.denies)}


class Writer:
    """Chooses wordings with one generator; test subjects also draw from the held-out ones."""

    def __init__(self, rng: np.random.Generator, *, test: bool) -> None:
        self.rng = rng
        self.test = test

    def choose(self, wordings: Sequence[str]) -> tuple[str, bool]:
        """One wording and whether it is held out: half of a test subject's sentences are, nobody else's."""
        if self.test and self.rng.random() < 0.5:
            return wordings[-1], True
        return wordings[int(self.rng.integers(len(wordings) - 1))], False

    def sentence(self, wordings: Sequence[str], finding: Finding, section: str, words: Mapping[str, str]) -> Sentence:
        """A sentence that tells one finding."""
        wording, held_out = self.choose(wordings)
        text = wording.format_map(dict(words))
        return Sentence(text=text[0].upper() + text[1:], section=section, findings=(finding.id,), held_out=held_out)

    def denials(self, absent: Sequence[str]) -> list[Sentence]:
        """A random subset of the absent findings, in random order, denied one or a few at a time."""
        kept = [kind for kind in absent if kind != "volume_loss" and self.rng.random() < 0.8]
        order = [kept[i] for i in self.rng.permutation(len(kept))]
        told = []
        while order:
            size = int(self.rng.integers(1, 4))
            group, order = order[:size], order[size:]
            drawn = [self.choose(ABSENT[kind]) for kind in group]
            names = [name for name, _ in drawn]
            what = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
            wording, held_out = self.choose(DENIALS)
            text = wording.format(what=what, What=what[0].upper() + what[1:])
            told.append(
                Sentence(
                    text=text,
                    section="findings",
                    denies=tuple(group),
                    held_out=held_out or any(held for _, held in drawn),
                )
            )
        if "volume_loss" in absent and self.rng.random() < 0.8:
            text, held_out = self.choose(VENTRICLES)
            told.append(Sentence(text=text, section="findings", denies=("volume_loss",), held_out=held_out))
        return told


def size_cm(diameters_mm: Sequence[float]) -> str:
    """Three diameters in cm to one decimal, each rounded down or up so that their product stays nearest to the true."""
    true = float(np.prod(diameters_mm)) / 1000.0
    choices = [sorted({np.floor(d) / 10.0, np.ceil(d) / 10.0}) for d in diameters_mm]
    best = min(itertools.product(*choices), key=lambda three: abs(float(np.prod(three)) - true))
    return " x ".join(f"{value:.1f}" for value in sorted(best, reverse=True))


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
    return words | {key.capitalize(): value[:1].upper() + value[1:] for key, value in words.items()}


def write_report(
    findings: Sequence[Finding], absent: Sequence[str], acquired: Sequence[str], *, rng: np.random.Generator, test: bool
) -> tuple[Report, list[Sentence]]:
    """The report of a study and its sentences.

    TECHNIQUE names the acquired sequences and nothing else does; FINDINGS tells and denies; IMPRESSION sums up.
    """
    writer = Writer(rng, test=test)
    told = [writer.sentence(FINDINGS[f.type], f, "findings", words_for(f, acquired)) for f in findings]
    body = told + writer.denials(absent)
    summed = [writer.sentence(IMPRESSIONS[f.type], f, "impression", words_for(f, acquired)) for f in findings]
    if not findings:
        text, held_out = writer.choose(IMPRESSIONS["normal"])
        summed = [Sentence(text=text, section="impression", held_out=held_out)]
    names = ", ".join(SEQUENCE_WORDS[name] for name in acquired)
    found = " ".join(sentence.text for sentence in body) or "No abnormality is described."
    impression = " ".join(f"{n}. {sentence.text}" for n, sentence in enumerate(summed, 1))
    text = f"TECHNIQUE: Simulated brain MRI: {names}.\n\nFINDINGS: {found}\n\nIMPRESSION: {impression}\n"
    return Report(text=text, findings=found, impression=impression), [*body, *summed]
