"""Report text of a simulated liver study, from its truth and the series acquired.

A lesion is described by what the acquired series show of it (`wordings.toml`), and named only where the series that
its name rests on were acquired (`NEEDS`); otherwise the report calls it indeterminate, although its label stands. The
last wording of every list is held out for test subjects.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np

from tomoglot.studies.phantom.liver.signal import PHASES, SEQUENCES
from tomoglot.studies.phantom.sentences import Sentence, Writer, assemble, capitalised, size_cm
from tomoglot.studies.study import Report

SEQUENCE_WORDS: Mapping[str, str] = {
    "t2w": "T2-weighted", "dwi": "diffusion-weighted", "in_phase": "in-phase T1-weighted",
    "out_of_phase": "out-of-phase T1-weighted", "pre_contrast": "pre-contrast T1-weighted",
    "arterial": "arterial phase", "portal_venous": "portal venous phase", "delayed": "delayed phase",
}  # fmt: skip

WORDS = tomllib.loads((files(__package__) / "wordings.toml").read_text("utf-8"))
SENTENCES: Mapping[str, list[str]] = WORDS["sentences"]
LOOKS: Mapping[str, Mapping[str, list[str]]] = WORDS["looks"]
NAMES: Mapping[str, list[str]] = WORDS["names"]
PLURALS: Mapping[str, str] = WORDS["plurals"]
OTHERS = ("spleen", "kidneys", "veins")
# One of these sets must have been acquired for a lesion to be named.
NEEDS: Mapping[str, tuple[frozenset[str], ...]] = {
    "hcc": (frozenset({"arterial", "portal_venous"}), frozenset({"arterial", "delayed"})),
    "icc": (frozenset({"arterial", "delayed"}), frozenset({"portal_venous", "delayed"})),
    "metastasis": (frozenset({"arterial"}), frozenset({"portal_venous"}), frozenset({"t2w", "dwi"})),
    "cyst": (frozenset({"t2w"}), frozenset({"portal_venous"}), frozenset({"delayed"})),
    "haemangioma": (frozenset({"arterial", "portal_venous"}), frozenset({"arterial", "delayed"}),
                    frozenset({"t2w", "delayed"}), frozenset({"portal_venous", "delayed"})),
    "fnh": (frozenset({"arterial", "portal_venous"}), frozenset({"arterial", "delayed"})),
    "abscess": (frozenset({"dwi", "t2w"}), frozenset({"dwi", "portal_venous"}), frozenset({"dwi", "arterial"}),
                frozenset({"portal_venous", "t2w"})),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """All lesions of one kind in a study; what says so is of the largest."""

    id: int
    type: str
    side: str  # lobe: right, left, caudate, or both
    segment: str  # of the largest
    segments: tuple[str, ...]
    count: int
    diameters_mm: tuple[float, ...]  # of the largest
    volume_ml: float  # of all
    centroid_mm: tuple[float, ...]  # of the largest
    mask_labels: tuple[int, ...]
    rim: bool = False
    fat: float = 0.0
    named: bool = False

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        return asdict(self)


def can_be_named(kind: str, acquired: Sequence[str]) -> bool:
    """Whether the acquired series hold what the kind is told by."""
    return any(needed <= set(acquired) for needed in NEEDS[kind])


def place_of(finding: Finding) -> str:
    """Where, in words."""
    if finding.count > 1:
        return {"both": "both lobes of the liver", "caudate": "the caudate lobe"}.get(
            finding.side, f"the {finding.side} lobe of the liver"
        )
    if finding.side == "caudate":
        return "the caudate lobe (segment I)"
    return f"segment {finding.segment} of the {finding.side} lobe"


def listed(parts: Sequence[str]) -> str:
    """One, two, or more things in a row of words."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def looks_of(finding: Finding, acquired: Sequence[str], writer: Writer) -> list[tuple[str, bool]]:
    """A phrase for what each acquired series shows, and whether it is held out."""
    shown = [name for name in ("t2w", "dwi") if name in acquired]
    shown += ["t1"] if {"pre_contrast", "in_phase"} & set(acquired) else []
    shown += [name for name in PHASES[1:] if name in acquired]
    looks = dict(LOOKS[finding.type])
    if finding.type == "hcc" and finding.rim:
        looks["arterial"] = SENTENCES["rim_hcc"]
    return [writer.choose(looks[name]) for name in shown]


def tell(finding: Finding, acquired: Sequence[str], writer: Writer) -> list[Sentence]:
    """The sentences of FINDINGS about one finding: where and how large, then how it looks."""
    many = finding.count > 1
    words = capitalised(
        {"size": size_cm(finding.diameters_mm), "place": place_of(finding), "segment": finding.segment,
         "count": str(finding.count)}
    )  # fmt: skip
    told = [writer.sentence(SENTENCES["leads_many"] if many else SENTENCES["leads_one"], finding.id, "findings", words)]
    looks = looks_of(finding, acquired, writer)
    if looks:
        frame, held_out = writer.choose(SENTENCES["shown_many"] if many else SENTENCES["shown_one"])
        text = frame.format(looks=listed([phrase for phrase, _ in looks]))
        held_out = held_out or any(held for _, held in looks)
        told.append(Sentence(text=text, section="findings", findings=(finding.id,), held_out=held_out))
    if finding.fat > 0.08 and {"in_phase", "out_of_phase"} <= set(acquired):
        told.append(writer.sentence(SENTENCES["fatty"], finding.id, "findings", {}))
    return told


def conclude(finding: Finding, writer: Writer) -> Sentence:
    """The sentence of IMPRESSION about one finding: its name where it can be named."""
    words = {"size": size_cm(finding.diameters_mm), "place": place_of(finding), "s": "s" if finding.count > 1 else ""}
    if not finding.named:
        return writer.sentence(SENTENCES["indeterminate"], finding.id, "impression", words)
    name, held_out = writer.choose(NAMES[finding.type])
    words["name"] = PLURALS.get(name, name + "s") if finding.count > 1 else name
    frames = SENTENCES["impressions"][1:] if finding.count > 1 else SENTENCES["impressions"]
    sentence = writer.sentence(frames, finding.id, "impression", capitalised(words))
    return Sentence(
        text=sentence.text, section="impression", findings=(finding.id,), held_out=sentence.held_out or held_out
    )


def background(fat: float, acquired: Sequence[str], writer: Writer) -> list[Sentence]:
    """Sentences on fat in the liver, other organs, and phases that are missing; each may stay unsaid."""
    chosen: list[Sequence[str]] = []
    if {"in_phase", "out_of_phase"} <= set(acquired) and (fat >= 0.08 or writer.rng.random() < 0.5):
        chosen.append(SENTENCES["steatosis" if fat >= 0.08 else "no_steatosis"])
    chosen += [SENTENCES[organ] for organ in OTHERS if writer.rng.random() < 0.5]
    missing = [name for name in SEQUENCES if name not in acquired]
    told = [Sentence(text=text, section="findings", held_out=held) for text, held in map(writer.choose, chosen)]
    if missing and writer.rng.random() < 0.5:
        frame, held_out = writer.choose(SENTENCES["missing"])
        what = listed([SEQUENCE_WORDS[name] for name in missing])
        text = frame.format_map(capitalised({"what": what}))
        told.append(Sentence(text=text, section="technique", held_out=held_out))
    return told


def write_report(
    findings: Sequence[Finding],
    absent: Sequence[str],
    acquired: Sequence[str],
    *,
    liver_fat: float,
    rng: np.random.Generator,
    test: bool,
) -> tuple[Report, list[Sentence]]:
    """The report of a study and its sentences. Nothing is denied where a lesion could not be named."""
    writer = Writer(rng, test=test)
    told = [sentence for finding in findings for sentence in tell(finding, acquired, writer)]
    if all(finding.named for finding in findings):
        told += writer.denials(absent, NAMES)
    aside = background(liver_fat, acquired, writer)
    body = told + [sentence for sentence in aside if sentence.section == "findings"]
    summed = [conclude(finding, writer) for finding in findings]
    if not findings:
        text, held_out = writer.choose(SENTENCES["normal"])
        summed = [Sentence(text=text, section="impression", held_out=held_out)]
    said = [sentence for sentence in aside if sentence.section == "technique"]
    names = ", ".join(SEQUENCE_WORDS[name] for name in acquired)
    technique = " ".join([f"Simulated liver MRI: {names}.", *(sentence.text for sentence in said)])
    return assemble(technique, body, summed), [*body, *summed, *said]
