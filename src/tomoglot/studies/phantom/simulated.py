"""A simulated study, its split and its random streams, and what makes a cohort: the same for every organ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tomoglot.studies.study import Report, Volume

SPLIT_FRACTIONS: Mapping[str, float] = {"train": 0.6, "val": 0.1, "test": 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What files and pictures of a cohort need to know: its name, how to make a study, and its words.

    `suffixes` names the file of each sequence, in the order in which they are shown; `colours` has a colour for each
    label of the mask, by name; `form_code` is NIfTI's word for the space (1 scanner, 4 MNI152); `level_mm` is the slice
    shown where there is no lesion; `motion_mm` is used where none is asked for; `windows` are what a CT is shown in: a
    name, and the Hounsfield units of black and white.
    """

    name: str
    generate: Callable[..., PhantomStudy]
    findings: tuple[str, ...]
    kinds: tuple[str, ...]
    suffixes: Mapping[str, str]
    mask_labels: Mapping[str, int]
    colours: Mapping[str, str]
    description: str
    form_code: int
    level_mm: float
    motion_mm: float = 0.0
    windows: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhantomStudy:
    """One simulated study: volumes and mask in memory, report, truth, and labels: 1 or 0 for each finding.

    `also` is a second reconstruction of the same scan: a study of its own, whose report is the same.
    """

    subject: str
    study: str
    split: str
    volumes: dict[str, Volume]
    mask: Volume
    report: Report
    labels: dict[str, float]
    truth: dict[str, object]
    also: PhantomStudy | None = None


def split_of(seed: int, index: int, fractions: Mapping[str, float]) -> str:
    """The split of a subject, from a hash of seed and index alone."""
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1.0) > 1e-6:
        raise ValueError(f"split fractions must be at least 0 and sum to 1, got {dict(fractions)}")
    digest = hashlib.blake2b(f"phantom:{seed}:{index}".encode(), digest_size=8).digest()
    place, reached = int.from_bytes(digest, "big") / 2**64, 0.0
    for name, share in fractions.items():
        reached += share
        if place < reached:
            return name
    return list(fractions)[-1]


def stream(seed: int, index: int, step: str) -> np.random.Generator:
    """A generator of its own for one step of one study."""
    digest = hashlib.blake2b(f"{seed}:{index}:{step}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
