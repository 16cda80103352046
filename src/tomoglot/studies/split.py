"""Splits by subject: frozen by a keyed hash, checked for subjects on two sides, digested; and shares of a side."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray


def split_subjects(subjects: Iterable[str], *, fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Give each subject a side, by where a hash of its name (keyed with `seed`) falls between 0 and 1.

    The side depends on the subject, the fractions and the seed only, so adding a subject never moves another. The
    price: a side's size varies like a binomial count, and a small cohort may leave a small side empty.

    Raises:
        ValueError: no fractions, a negative one, or a sum that is not 1.
    """
    if not fractions or any(share < 0 for share in fractions.values()):
        raise ValueError(f"split fractions must be given and none negative, got {dict(fractions)}")
    if not math.isclose(total := sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"split fractions must sum to 1, got {total:g} from {dict(fractions)}")
    return {subject: _side(_place(subject, seed), fractions) for subject in sorted(set(subjects))}


def check_split(assignments: Iterable[tuple[str, str]]) -> None:
    """Refuse a split that has one subject on two sides; `assignments` are (subject, side) pairs.

    Raises:
        ValueError: with the number of such subjects, and no name.
    """
    sides: dict[str, set[str]] = {}
    for subject, side in assignments:
        sides.setdefault(subject, set()).add(side)
    both = [found for found in sides.values() if len(found) > 1]
    if both:
        names = ", ".join(sorted(set().union(*both)))
        raise ValueError(
            f"the split puts {len(both)} of {len(sides)} subjects on more than one side ({names}): a score on them "
            "would be a score on training data; give every study of a subject the same split"
        )


def keep_subjects(subjects: NDArray[np.generic], *, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of n studies are kept when a fraction of the subjects (at least one) is: (n,).

    Subjects are drawn, not studies, in one order a seed: those of a smaller fraction lie within those of a larger one.

    Raises:
        ValueError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label_fraction, a share of subjects, must lie above 0 and at most at 1, got {fraction}")
    distinct = np.unique(subjects)
    order = np.random.default_rng(seed).permutation(distinct)
    return np.isin(subjects, order[: max(1, round(fraction * len(distinct)))])


def split_digest(assignment: Mapping[str, str]) -> str:
    """SHA-256 of a split, the same in whatever order it was built."""
    canonical = json.dumps(sorted(assignment.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _place(subject: str, seed: int) -> float:
    key = hashlib.sha256(f"tomoglot split {seed}".encode()).digest()
    digest = hashlib.blake2b(subject.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _side(place: float, fractions: Mapping[str, float]) -> str:
    upper = 0.0
    for side, share in fractions.items():
        upper += share
        if place < upper:
            return side
    # Rounding can leave the last border a hair below 1.
    return [side for side, share in fractions.items() if share > 0][-1]
