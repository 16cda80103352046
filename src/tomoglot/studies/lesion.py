"""What a mask's numbers mean: one list of lesion tissues, and the regions that are scored, over all data sets.

A mask file numbers its labels as its makers chose (enhancing tumour is 4 in BraTS 2021, 3 in BraTS 2023, 1 in the
paediatric set of 2024). A reader says what the file's numbers mean (`Study.mask_labels`), `curate.examine` rewrites the
mask to the numbers below, and nothing after it ever sees another numbering, so one batch may hold several data sets.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.study import Rejected

# Numbers are stored in masks: never change one, only add. The first six are those of the simulated cohort.
LESIONS: Mapping[str, int] = {
    "necrosis": 1,
    "rim": 2,  # enhancing tumour, ET
    "oedema": 3,  # with infiltration: ED, or surrounding non-enhancing FLAIR hyperintensity, SNFH
    "plaque": 4,
    "infarct": 5,
    "blood": 6,
    "non_enhancing": 7,  # non-enhancing tumour core where necrosis is not told apart: NETC, NET, NC
    "cystic": 8,
    # Whole lesions of the liver, one number a kind.
    "hcc": 9,
    "icc": 10,
    "liver_metastasis": 11,
    "liver_cyst": 12,
    "haemangioma": 13,
    "fnh": 14,
    "liver_abscess": 15,
    # Findings of the chest, one number each, under the finding's own name.
    "lung_nodule": 16,
    "consolidation": 17,
    "lung_opacity": 18,
    "atelectasis": 19,
    "emphysema": 20,
    "mosaic_attenuation_pattern": 21,  # the darker patches
    "interlobular_septal_thickening": 22,
    "bronchiectasis": 23,
    "peribronchial_thickening": 24,
    "pulmonary_fibrotic_sequela": 25,
    "pleural_effusion": 26,
    "pericardial_effusion": 27,
    "hiatal_hernia": 28,
    "lymphadenopathy": 29,
    "arterial_wall_calcification": 30,
    "coronary_artery_wall_calcification": 31,
    "medical_material": 32,
}
_LUNG = ("lung_nodule", "consolidation", "lung_opacity", "atelectasis")
_CORE = ("necrosis", "rim", "non_enhancing", "cystic")
REGIONS: Mapping[str, tuple[str, ...]] = {
    "enhancing": ("rim",),
    "core": _CORE,
    "whole": (*_CORE, "oedema"),
    "liver_lesion": ("hcc", "icc", "liver_metastasis", "liver_cyst", "haemangioma", "fnh", "liver_abscess"),
    "lung_lesion": _LUNG,
    "chest_finding": tuple(name for name, number in LESIONS.items() if 16 <= number <= 32),
    "lesion": tuple(LESIONS),
}
"""Regions that join tissues: the three of the BraTS challenges, the liver's, what of the lungs holds less air than it
should, all of the chest, and everything. A tissue's name is one as well."""

FINDING_REGIONS: Mapping[str, str] = {
    "mass": "whole",
    "demyelination": "plaque",
    "haemorrhage": "blood",
    "metastasis": "liver_metastasis",
    "cyst": "liver_cyst",
    "abscess": "liver_abscess",
}
"""The region that a finding of the reports is seen in, where it is not the one of the finding's own name."""

NUM_LABELS = 256


def region_numbers(name: str) -> tuple[int, ...]:
    """Mask numbers of a region, or of a single tissue, in rising order.

    Raises:
        ValueError: there is no such region; the nearest is named.
    """
    if name in REGIONS:
        return tuple(sorted(LESIONS[tissue] for tissue in REGIONS[name]))
    if name in LESIONS:
        return (LESIONS[name],)
    known = [*REGIONS, *LESIONS]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"there is no region {name!r}; {hint}")


def finding_numbers(finding: str) -> tuple[int, ...] | None:
    """Mask numbers of the region that a finding is seen in; None for one that no mask shows, such as `normal`."""
    region = FINDING_REGIONS.get(finding, finding)
    return region_numbers(region) if region in REGIONS or region in LESIONS else None


def check_mask_labels(labels: Mapping[int, str]) -> None:
    """Refuse a meaning of mask numbers that cannot be used.

    Raises:
        Rejected: `bad-mask-labels`, for a tissue that is not in `LESIONS` or a number that is not from 1 to 255.
    """
    unknown = sorted(set(labels.values()) - set(LESIONS))
    if unknown:
        raise Rejected("bad-mask-labels", f"no tissue {', '.join(unknown)}; known: {', '.join(LESIONS)}")
    if any(not 1 <= number < NUM_LABELS for number in labels):
        raise Rejected("bad-mask-labels", f"a mask's numbers run from 1 to {NUM_LABELS - 1}; 0 is always nothing")


def renumber(mask: NDArray[np.uint8], labels: Mapping[int, str]) -> NDArray[np.uint8]:
    """A mask in the numbers of `LESIONS`, given what its own numbers mean; without `labels` it is given back as it is.

    Raises:
        Rejected: `unknown-mask-label`, where the mask holds a number that `labels` does not name, and what
            `check_mask_labels` refuses.
    """
    if not labels:
        return mask
    check_mask_labels(labels)
    found = np.flatnonzero(np.bincount(mask.ravel(), minlength=NUM_LABELS)).tolist()
    unknown = sorted(set(found) - {0, *labels})
    if unknown:
        meanings = ", ".join(f"{number} {name}" for number, name in sorted(labels.items()))
        numbers = ", ".join(map(str, unknown))
        raise Rejected("unknown-mask-label", f"the mask holds {numbers}, and only these are known: {meanings}")
    table = np.zeros(NUM_LABELS, dtype=np.uint8)
    for number, name in labels.items():
        table[number] = LESIONS[name]
    return table[mask]
