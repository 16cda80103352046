"""Which sequence a series shows, from its header alone: physics first, then words, and unknown where they disagree.

Numbers and codes leave the families that they do not exclude (`naming_physics`); words choose among these and never
beyond them (`naming_words`). Rules were written on the open half of the header sets in tests and measured on the blind
half: `results/sequence_naming.md`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tomoglot.studies.acquisition import Acquisition
from tomoglot.studies.naming_physics import (
    DERIVED_TYPES,
    HIGHEST_B_VALUE,
    NUM_FAMILIES,
    by_fat_phase,
    coded_families,
    has_no_name,
    image_types,
    number,
    possible_families,
    scan_codes,
    typed_families,
)
from tomoglot.studies.naming_words import MARK, NO_NAME, Words, fold, read_words

THRESHOLD = 0.6
_FAMILY_NAMES = {"t1": "t1w", "t2": "t2w"}
_CT_FAMILIES = {"ct", "cta", "perfusion", "mra"}
# Maps that are kept, and images that some scanners call DERIVED, SECONDARY.
_KEPT_THOUGH_DERIVED = {"adc", "dwi", "swi", "in_phase", "out_of_phase", "dixon_fat"}
_CAPTURED = {"SC", "OT", "DOC", "PR", "KO", "SR", "SEG", "RTSTRUCT"}
_NO_AGENT = re.compile(r"(?:no|none|n|0|0 ?ml|without|nein|ohne|non|na|null|unknown)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What a series shows and why.

    `sequence` is our name, or None where it is unknown or the series is not to be used. `kind` is image, localiser
    (scouts, calibrations, bolus watching), derived (reformats, projections, maps; ADC maps are images), burnt-in or
    unknown. `confidence` is (n + 1) / (n + m + 2) for n independent witnesses in the header that agree with the name
    and m that speak against it: the chance, by Laplace's rule of succession, that one more witness would agree. A
    name below `THRESHOLD` is not given. `evidence` holds rules, numbers and words of our own vocabulary only.
    """

    sequence: str | None
    kind: str
    confidence: float
    evidence: tuple[str, ...]


@dataclass(slots=True)
class _Case:
    """Notes taken while one header is judged."""

    header: Acquisition
    description: Words
    protocol: Words
    evidence: list[str] = field(default_factory=list)
    agree: int = 0
    against: int = 0

    def witness(self, text: str) -> None:
        self.evidence.append(text)
        self.agree += 1

    def objection(self, text: str) -> None:
        self.evidence.append(text)
        self.against += 1

    def confidence(self) -> float:
        return (self.agree + 1) / (self.agree + self.against + 2)

    def answer(self, sequence: str) -> Naming:
        if self.confidence() < THRESHOLD:
            return self.unknown(f"{self.agree} for and {self.against} against {sequence}: too few")
        return Naming(sequence=sequence, kind="image", confidence=self.confidence(), evidence=tuple(self.evidence))

    def unknown(self, why: str, kind: str = "unknown") -> Naming:
        return Naming(sequence=None, kind=kind, confidence=self.confidence(), evidence=(*self.evidence, why))


def name_series(acquisition: Acquisition) -> Naming:
    """Name of what a series shows, its kind, the confidence in it and the evidence for it.

    Never raises; linear in the length of the header's texts. DWI carries its b-value (`dwi_b1000`), CT its phase
    (`ct_arterial`), dynamic T1-weighted series theirs (`arterial`).
    """
    case = _Case(acquisition, read_words(acquisition.description), read_words(acquisition.protocol))
    refused = _not_an_image(case)
    if refused is not None:
        return refused
    return _name_ct(case) if acquisition.modality.strip().upper() == "CT" else _name_mr(case)


def _not_an_image(case: _Case) -> Naming | None:
    """Burnt-in text, other modalities, localisers, and what was computed from images."""
    header, text = case.header, case.description.text
    modality, types = header.modality.strip().upper(), image_types(header)
    original, second = (*(one.strip().upper() for one in header.image_type[:2]), "", "")[:2]
    told = case.description.families | typed_families(header)
    silent = not case.description.families
    # Converters write a bare DERIVED, SECONDARY on whole volumes: it tells nothing. With more values it does.
    derived = (original, second) == ("DERIVED", "SECONDARY") and types and not told & _KEPT_THOUGH_DERIVED
    made = sorted(types & DERIVED_TYPES)
    checks: tuple[tuple[object, str, str], ...] = (
        (header.burnt_in, "burnt-in", "the header says that text is burnt into the pixels"),
        (modality in _CAPTURED, "derived", "the modality is one of computed or captured objects"),
        (modality not in {"", "MR", "CT"}, "unknown", "the modality is neither MR nor CT"),
        ("LOCALIZER" in types, "localiser", "image type LOCALIZER"),
        (MARK["localiser"].search(text), "localiser", "the description has a word for a localiser or a calibration"),
        (silent and MARK["localiser"].search(case.protocol.text), "localiser", "the protocol has such a word"),
        (made, "derived", f"image type {', '.join(made)}"),
        (MARK["derived"].search(text), "derived", "the description has a word for a computed image"),
        (original != "ORIGINAL" and MARK["reformatted"].search(text), "derived", "a word for a reformat"),
        (derived, "derived", "image type DERIVED, SECONDARY and no map that is kept"),
    )
    return next((case.unknown(why, kind) for found, kind, why in checks if found), None)


def _blocked(case: _Case) -> str | None:
    """Why this series has no name of ours, or None."""
    if has_no_name(case.header):
        return "sequence name of a kind that has no name of ours"
    diffusion = "dwi" in case.description.families | case.protocol.families
    for what, pattern in NO_NAME.items():
        # With diffusion, "30 dir" are directions.
        directions = what == "double inversion" and diffusion
        if not directions and any(pattern.search(words.text) for words in (case.description, case.protocol)):
            return f"a word for {what}, which has no name of ours"
    return None


def _name_mr(case: _Case) -> Naming:
    header = case.header
    blocked = _blocked(case)
    if blocked is not None:
        return case.unknown(blocked)
    described = case.description.families
    words = described or case.protocol.families
    possible, coded, scans = possible_families(header, worded=bool(words)), coded_families(header), scan_codes(header)
    timing = (("TR", header.repetition_ms), ("TE", header.echo_ms), ("TI", header.inversion_ms))
    known = [f"{what} {value:g} ms" for what, value in timing if number(value) is not None]
    case.evidence.append(", ".join((*known, *sorted(scans))) or "no timing and no scanning sequence")
    if "perfusion" in coded and "asl" in words:  # Philips calls labelled perfusion PERFUSION
        coded["asl"] = coded.pop("perfusion")
    left = possible & set(coded) if coded else possible
    # Maps and fat images are never told by timing alone.
    left = by_fat_phase(header, left & words if words else left if coded else left - {"adc", "dixon_fat"})
    if len(left) != 1:
        return case.unknown(f"{len(left)} families are left by physics, coded values and words together")
    (family,) = left
    if family == "adc" and family not in coded and "ORIGINAL" in (one.strip().upper() for one in header.image_type[:1]):
        return case.unknown("words say adc, the image type says ORIGINAL")
    if family == "dixon_fat" and family not in coded:
        return case.unknown("words say dixon_fat, no coded value does")
    if family in coded:
        case.witness(coded[family])
    if described:
        case.witness(f"the description has a word for {family}")
    if case.protocol.families and case.protocol.text != case.description.text:
        agrees = family in case.protocol.families
        note = case.witness if agrees else case.objection
        note(f"the protocol has a word for {family if agrees else 'another family'}")
    if scans and number(header.echo_ms) is not None:
        case.witness(f"timing allows {family} and excludes {NUM_FAMILIES - len(possible)} of {NUM_FAMILIES} families")
    if family == "t1":
        return _name_t1(case)
    return case.answer(_dwi_name(case) if family == "dwi" else _FAMILY_NAMES.get(family, family))


def _dwi_name(case: _Case) -> str:
    """`dwi_b<value>`, rounded to what scanners are set to; `dwi` where no single b-value is told."""
    b_value = case.header.b_value
    if b_value is None:
        told = case.description.b_values or case.protocol.b_values
        # "B0" in a name says that some of its images have none: only a value above 0 names the series.
        b_value = max(told) if len(told) == 1 else None
        b_value = b_value or None
    if b_value is None or not 0 <= b_value <= HIGHEST_B_VALUE:
        return "dwi"
    step = 10 if b_value < 100 else 50
    return f"dwi_b{round(b_value / step) * step:d}"


def _contrast(case: _Case) -> tuple[bool | None, str]:
    """Whether contrast medium was given, None where the header contradicts itself; and why."""
    agent = case.header.contrast_agent.strip()
    given = bool(agent) and not _NO_AGENT.fullmatch(fold(agent))
    said, protocol, phases = case.description.contrast, case.protocol.contrast, case.description.phases
    if said is False and (given or phases):
        return None, "the description says that no contrast medium was given, another value that it was"
    if said is not None and protocol is not None and said != protocol:
        return None, "description and protocol contradict each other on contrast medium"
    if said is None and not given and not phases and (protocol or case.protocol.phases):
        return None, "only the protocol's name speaks of contrast medium"
    if given:
        case.witness("a contrast agent is named")
    if said is not None:
        case.witness(f"the description has a word for {'contrast medium' if said else 'no contrast medium'}")
    for phase in sorted(phases):
        case.witness(f"the description has a word for {phase}")
    return bool(given or said or phases), "no sign of contrast medium"


def _name_t1(case: _Case) -> Naming:
    header, phases = case.header, case.description.phases
    contrast, why = _contrast(case)
    if contrast is None:
        return case.unknown(why)
    if phases:
        return case.answer(min(phases)) if len(phases) == 1 else case.unknown(f"words for {len(phases)} phases")
    texts = (case.description.text, case.protocol.text)
    if "GR" in scan_codes(header) and "MTC" in (one.strip().upper() for one in header.sequence_variant):
        return case.unknown("a gradient echo with magnetisation transfer has no name of ours")
    if (header.temporal_position or 0) > 1 or any(MARK["dynamic"].search(one) for one in texts):
        return case.unknown("one of several time points, and no word for its phase")
    if contrast:
        return case.answer("t1c")
    abdominal = any(MARK["abdominal"].search(one) for one in (*texts, fold(header.body_part)))
    if case.description.contrast is False and abdominal:
        return case.answer("pre_contrast")
    if not any(texts):
        return case.unknown("T1-weighted, and no text: with or without contrast medium cannot be told")
    case.evidence.append(why)
    return case.answer("t1w")


def _name_ct(case: _Case) -> Naming:
    """CT with its phase: `ct` where nothing speaks of contrast medium, `ct_contrast` where the phase is not said."""
    families, phases, header = case.description.families, case.description.phases, case.header
    if families - _CT_FAMILIES:
        return case.unknown("the modality is CT, the words are of MR")
    case.witness("modality CT")
    if number(header.kilovolts) is not None or header.kernel.strip():
        case.witness("a tube voltage or a kernel is given")
    if "perfusion" in families:
        return case.answer("ct_perfusion")
    contrast, why = _contrast(case)
    if contrast is None:
        return case.unknown(why)
    if families & {"cta", "mra"}:
        case.witness("the description has a word for angiography")
        return case.answer("ct_angiography")
    if phases:
        return case.answer(f"ct_{min(phases)}") if len(phases) == 1 else case.unknown(f"words for {len(phases)} phases")
    case.evidence.append("phase not said" if contrast else why)
    return case.answer("ct_contrast" if contrast else "ct")
