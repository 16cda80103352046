"""Report text of a simulated chest CT, from its truth alone: two reconstructions of a scan share it.

What is present is told with side, lobe and size, or, where truth says `uncertain`, with doubt; what is absent is
denied, outright or by a sentence on a normal organ, or goes unsaid. The last wording of every list in `wordings.toml`
is held out for test subjects.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np

from tomoglot.studies.phantom.sentences import Sentence, Writer, assemble, capitalised
from tomoglot.studies.study import Report

WORDS = tomllib.loads((files(__package__) / "wordings.toml").read_text("utf-8"))
NAMES: Mapping[str, list[str]] = WORDS["names"]
TELL: Mapping[str, Mapping[str, list[str]]] = WORDS["tell"]
CONCLUDE: Mapping[str, list[str]] = WORDS["conclude"]
CLEAR: Sequence[Mapping[str, list[str]]] = WORDS["clear"]
SENTENCES: Mapping[str, list[str]] = WORDS["sentences"]
AMOUNTS: Mapping[str, Mapping[str, float]] = WORDS["amounts"]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
UNSAID_SHARE = 0.3  # of what is absent
SILENT_SHARE = 0.35  # of normal organs
PLACED = (
    "lung_nodule", "consolidation", "lung_opacity", "atelectasis", "emphysema", "bronchiectasis",
    "pulmonary_fibrotic_sequela", "interlobular_septal_thickening", "mosaic_attenuation_pattern",
)  # fmt: skip
MINOR = ("arterial_wall_calcification", "medical_material", "pulmonary_fibrotic_sequela", "hiatal_hernia")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """All parts of one finding in a study; sizes and centre are of the largest part."""

    id: int
    type: str
    side: str  # right, left, both
    lobes: tuple[str, ...]  # that hold a good part of it
    details: tuple[str, ...]  # devices, stations, arteries, forms
    count: int
    diameters_mm: tuple[float, ...]
    volume_ml: float  # of all parts
    centroid_mm: tuple[float, ...]
    mask_labels: tuple[int, ...]
    uncertain: bool = False

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        return asdict(self)


def listed(parts: Sequence[str]) -> str:
    """One, two, or more things in a row of words."""
    return parts[0] if len(parts) < 2 else ", ".join(parts[:-1]) + " and " + parts[-1]


def place_of(finding: Finding) -> str:
    """Where in the lungs, in words."""
    sides = {lobe.split()[0] for lobe in finding.lobes}
    if not finding.lobes or (len(finding.lobes) >= 4 and len(sides) == 2):
        return "both lungs"
    if len(finding.lobes) == 1:
        return f"the {finding.lobes[0]} lobe"
    if len(sides) == 1 and len(finding.lobes) == (3 if "right" in sides else 2):
        return f"the {sides.pop()} lung"
    return f"the {listed(finding.lobes)} lobes"


def amount_of(finding: Finding) -> str:
    """The word for how much there is, by the volume of the mask."""
    limits = AMOUNTS.get(finding.type, {})
    return next((word for word, most_ml in limits.items() if finding.volume_ml <= most_ml), "")


def size_of(finding: Finding, writer: Writer) -> str:
    """Largest diameter, or the short axis of a node, in mm or cm."""
    if not finding.diameters_mm:
        return ""
    chosen = finding.diameters_mm[-1] if finding.type == "lymphadenopathy" else finding.diameters_mm[0]
    return f"{chosen:.0f} mm" if writer.rng.random() < 0.6 else f"{chosen / 10:.1f} cm"


def words_of(finding: Finding, writer: Writer) -> dict[str, str]:
    """What the wordings of a finding may speak of."""
    name, _ = writer.choose(NAMES[finding.type][:-1])
    words = {
        "name": name,
        "side": {"both": "bilateral"}.get(finding.side, finding.side),
        "place": place_of(finding),
        "count": NUMBERS[min(finding.count, 6)],
        "amount": amount_of(finding),
        "size": size_of(finding, writer),
        "detail": listed(finding.details) if finding.details else "",
    }
    return capitalised(words)


def form_of(finding: Finding) -> str:
    """Which list of wordings tells a finding."""
    forms = TELL[finding.type]
    for detail in finding.details:
        if detail in forms:
            return detail
    return "many" if finding.count > 1 and "many" in forms else "one"


def tell(finding: Finding, writer: Writer) -> Sentence:
    """The sentence of FINDINGS about one finding."""
    words = words_of(finding, writer)
    if finding.uncertain:
        return doubt(finding, writer, "findings")
    return writer.sentence(TELL[finding.type][form_of(finding)], finding.id, "findings", words)


def conclude(finding: Finding, writer: Writer) -> Sentence:
    """The sentence of IMPRESSION about one finding."""
    if finding.uncertain:
        return doubt(finding, writer, "impression")
    return writer.sentence(CONCLUDE[finding.type], finding.id, "impression", words_of(finding, writer))


def doubt(finding: Finding, writer: Writer, section: str) -> Sentence:
    """A sentence that leaves open whether a finding is there."""
    words = words_of(finding, writer)
    if finding.type in PLACED:
        words["at"] = f" in {words['place']}"
    elif finding.type == "pleural_effusion":
        words |= {"at": f" on the {finding.side}" if finding.side != "both" else " on both sides"}
    else:
        words["at"] = ""
    return writer.sentence(SENTENCES[f"doubt_{section}"], finding.id, section, words)


def organs(absent: Sequence[str], writer: Writer) -> list[Sentence]:
    """Sentences on normal organs, which deny what they rule out, and on what no finding is about."""
    told = []
    for clear in CLEAR:
        if set(clear["denies"]) <= set(absent) and writer.rng.random() > SILENT_SHARE:
            text, held_out = writer.choose(clear["says"])
            told.append(Sentence(text=text, section="findings", denies=tuple(clear["denies"]), held_out=held_out))
    return told


def write_report(
    findings: Sequence[Finding], absent: Sequence[str], *, rng: np.random.Generator, test: bool, called: str = "ct"
) -> tuple[Report, list[Sentence]]:
    """The report of a study and its sentences; `called` (ct, radiograph) names the images, nothing else differs."""
    writer = Writer(rng, test=test)
    about = [tell(finding, writer) for finding in findings]
    clear = organs(absent, writer)
    denied = {name for sentence in clear for name in sentence.denies}
    left = [name for name in absent if name not in denied and rng.random() > UNSAID_SHARE]
    others = writer.denials(left, NAMES)
    body = [about[i] for i in rng.permutation(len(about))]
    rest = [*clear, *others]
    rest = [rest[i] for i in rng.permutation(len(rest))]
    # Readers either report what is wrong first, or go from organ to organ.
    told = body + rest
    if rng.random() < 0.5:
        told = [told[i] for i in rng.permutation(len(told))]
    kept = [finding for finding in findings if finding.type not in MINOR or rng.random() > 0.3] or list(findings)
    summed = [conclude(finding, writer) for finding in kept]
    if not findings:
        text, held_out = writer.choose(SENTENCES[f"normal_{called}"])
        summed = [Sentence(text=text, section="impression", denies=tuple(absent), held_out=held_out)]
    technique, held_out = writer.choose(SENTENCES[f"technique_{called}"])
    said = Sentence(text=technique, section="technique", held_out=held_out)
    return assemble(technique, told, summed), [*told, *summed, said]
