"""Which organ a finding belongs to, so that scores of several organs can be told apart.

`normal` belongs to every organ: a normal liver says nothing of a brain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NORMAL = "normal"
OTHER = "other"

ORGANS: Mapping[str, tuple[str, ...]] = {
    "brain": (
        "mass",
        "demyelination",
        "infarct",
        "haemorrhage",
        "volume_loss",
        "oedema",
        "midline_shift",
        NORMAL,
    ),
    "liver": ("hcc", "icc", "metastasis", "cyst", "haemangioma", "fnh", "abscess", NORMAL),
    "chest": (
        "medical_material",
        "arterial_wall_calcification",
        "cardiomegaly",
        "pericardial_effusion",
        "coronary_artery_wall_calcification",
        "hiatal_hernia",
        "lymphadenopathy",
        "emphysema",
        "atelectasis",
        "lung_nodule",
        "lung_opacity",
        "pulmonary_fibrotic_sequela",
        "pleural_effusion",
        "mosaic_attenuation_pattern",
        "peribronchial_thickening",
        "consolidation",
        "bronchiectasis",
        "interlobular_septal_thickening",
        NORMAL,
    ),
}


def organ_of(labelled: Iterable[str]) -> str:
    """The organ of a study from the findings that are known of it, present or absent.

    Where they are of several organs it is the one of which the greater share is known; `other` where they are of none.
    `normal` alone says nothing.
    """
    known = set(labelled) - {NORMAL}
    shares = {organ: len(known.intersection(names)) / len(names) for organ, names in ORGANS.items()}
    best = max(shares, key=lambda organ: shares[organ])
    return best if shares[best] > 0 else OTHER
