"""Phrases for a finding that a study has, and which side of the body its mask and its maps lie on.

Phrases are built from the finding's usual name and the side of its own mask ("left pleural effusion"), or they are the
sentences of the study's report that rules (`studies/findings.py`) read as saying that it is present. Which findings
have a side, what they are called, and where the midline is, is ours. A side is told in world coordinates: the right is
where x grows, whichever way the voxels run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Affine
from tomoglot.store.catalogue import StudyRow
from tomoglot.studies.findings import LISTS, label_sentence
from tomoglot.studies.organ import organ_of
from tomoglot.studies.report import sentences, spoken

Side = Literal["right", "left", "bilateral"]
Kind = Literal["names", "sentences"]

# Less of a region than this on the other side of the midline leaves it one-sided; as in the simulated chest's truth.
LEAST_SHARE = 0.15
# Findings of organs with a left and a right half. The liver, the heart and the mediastinum have none.
SIDED = frozenset(
    (
        "mass", "demyelination", "infarct", "haemorrhage", "oedema",
        "emphysema", "atelectasis", "lung_nodule", "lung_opacity", "pulmonary_fibrotic_sequela", "pleural_effusion",
        "mosaic_attenuation_pattern", "peribronchial_thickening", "consolidation", "bronchiectasis",
        "interlobular_septal_thickening",
    )
)  # fmt: skip
# Where a finding is called otherwise than its name says.
SPOKEN: Mapping[str, str] = {
    "demyelination": "demyelinating lesions",
    "hcc": "hepatocellular carcinoma",
    "icc": "intrahepatic cholangiocarcinoma",
    "metastasis": "liver metastasis",
    "cyst": "liver cyst",
    "haemangioma": "liver haemangioma",
    "fnh": "focal nodular hyperplasia",
    "abscess": "liver abscess",
}
_SIDES = re.compile(r"\b(left|right)(?=\b|ward)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def midline_mm(body: NDArray[np.bool_], affine: Affine) -> float:
    """World x of the middle of a body (i, j, k): half-way between its 1st and its 99th percentile along x.

    Not its centre of gravity, which an effusion or a collapsed lung moves.
    """
    low, high = np.quantile(_x_mm(body.shape, affine)[body], [0.01, 0.99])
    return float(low + high) / 2


def right_share(weights: NDArray[np.generic], affine: Affine, midline: float) -> float:
    """Share of what is positive in an array (i, j, k) that lies right of the midline; a half where nothing is."""
    positive = np.maximum(np.asarray(weights, dtype=np.float64), 0)
    total = positive.sum()
    x_mm = _x_mm(positive.shape, affine) - midline
    right = (positive * (x_mm > 0)).sum() + (positive * (x_mm == 0)).sum() / 2
    return float(right / total) if total > 0 else 0.5


def side_of_region(finding: str, region: NDArray[np.bool_], affine: Affine, midline: float) -> Side | None:
    """The side of a finding's region (i, j, k); None for a finding of an organ that has no two sides."""
    if finding not in SIDED:
        return None
    share = right_share(region, affine, midline)
    if LEAST_SHARE < share < 1 - LEAST_SHARE:
        return "bilateral"
    return "right" if share > 0.5 else "left"


def phrase_for(finding: str, side: Side | None) -> str:
    """What a radiologist would call it: "left pleural effusion", "liver cyst"."""
    name = SPOKEN.get(finding, finding.replace("_", " "))
    return f"{side} {name}" if side and finding in SIDED else name


def other_side(text: str) -> str | None:
    """The text with left and right exchanged; None where it names neither."""

    def exchange(found: re.Match[str]) -> str:
        word = _OTHER[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return _SIDES.sub(exchange, text) if _SIDES.search(text) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """What is asked of a study about one finding; empty where there is no such phrase.

    Attributes:
        own: what is true of it.
        other_side: the same, left and right exchanged.
        other_finding: of a finding of the same organ that is known to be absent, on the same side.
    """

    own: tuple[str, ...] = ()
    other_side: tuple[str, ...] = ()
    other_finding: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every phrase, once."""
        return tuple(dict.fromkeys((*self.own, *self.other_side, *self.other_finding)))


class Phrasing:
    """Phrases of one kind for the findings of some studies."""

    def __init__(self, kind: Kind, findings: Sequence[str], rows: Sequence[StudyRow], *, seed: int) -> None:
        """Read the reports where sentences are asked for.

        Raises:
            ValueError: no report of the studies says of any of the findings that it is present.
        """
        self.kind, self.findings, self._seed = kind, tuple(findings), seed
        self._said = {row.key: said_present(row.report or "", findings) for row in rows} if kind == "sentences" else {}
        if kind == "sentences" and not any(self._said.values()):
            raise ValueError(
                f"no report of these {len(rows)} studies says that {', '.join(findings)} is present, by the rules of "
                "studies/findings.py; ask with phrases=names"
            )
        self._rows = tuple(rows)

    def of(self, row: StudyRow, finding: str, side: Side | None) -> Phrases:
        """The phrases for a finding that a study has, on this side."""
        absent = self._absent(row, finding)
        if self.kind == "names":
            own: tuple[str, ...] = (phrase_for(finding, side),)
            foreign = tuple(phrase_for(other, side) for other in absent[:1])
        else:
            own = self._said[row.key].get(finding, ())
            foreign = self._sentence_of_others(row, absent)
        exchanged = [other_side(text) for text in own] if side in _OTHER else []
        return Phrases(own=own, other_side=tuple(text for text in exchanged if text), other_finding=foreign)

    def _absent(self, row: StudyRow, finding: str) -> list[str]:
        """Findings of the same organ that are known to be absent, in an order drawn for it."""
        organ = organ_of([finding])
        others = [
            name
            for name in self.findings
            if name != finding and organ_of([name]) == organ and row.labels.get(name, 1.0) <= 0.5
        ]
        return sorted(others, key=lambda name: self._lot(row.key, finding, name))

    def _sentence_of_others(self, row: StudyRow, absent: Sequence[str]) -> tuple[str, ...]:
        for name in absent:
            told = [
                other.key for other in self._rows if other.subject != row.subject and self._said[other.key].get(name)
            ]
            if told:
                drawn = min(told, key=lambda key: self._lot(row.key, name, key))
                return self._said[drawn][name]
        return ()

    def _lot(self, *of: str) -> bytes:
        return hashlib.sha256("\n".join((str(self._seed), *of)).encode()).digest()


def said_present(report: str, findings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The sentences of a report that say of a finding that it is present, by finding; one without rules has none."""
    known = [finding for finding in findings if any(finding in names for names in LISTS.values())]
    found: dict[str, list[str]] = {}
    for sentence in sentences(spoken(report)):
        for finding, certainty in label_sentence(sentence, known).items():
            if certainty == "present":
                found.setdefault(finding, []).append(sentence)
    return {finding: tuple(dict.fromkeys(its)) for finding, its in found.items()}


def _x_mm(shape: tuple[int, ...], affine: Affine) -> NDArray[np.float64]:
    """World x of every voxel."""
    i, j, k = np.ogrid[tuple(slice(size) for size in shape)]
    return np.asarray(affine[0, 0] * i + affine[0, 1] * j + affine[0, 2] * k + affine[0, 3])
