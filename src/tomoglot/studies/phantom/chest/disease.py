"""Which findings a simulated chest has: conditions first, and findings that go with them; about one in five has none.

The conditions and their shares are ours: they make findings occur together roughly as they do (fluid with collapsed
lung and a wide heart, emphysema with scars), so that a model cannot learn one from the other alone, nor with ease.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tomoglot.studies.phantom.chest.scene import FINDINGS

NORMAL_SHARE = 0.2
# A condition, its share, and the findings that it brings.
CONDITIONS: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "atherosclerosis": (0.38, {"coronary_artery_wall_calcification": 0.65, "arterial_wall_calcification": 0.72,
                               "cardiomegaly": 0.12, "medical_material": 0.08}),
    "failure": (0.17, {"cardiomegaly": 0.8, "pleural_effusion": 0.7, "interlobular_septal_thickening": 0.65,
                       "pericardial_effusion": 0.35, "lung_opacity": 0.25, "medical_material": 0.2}),
    "infection": (0.25, {"consolidation": 0.6, "lung_opacity": 0.65, "pleural_effusion": 0.22, "lymphadenopathy": 0.2,
                         "peribronchial_thickening": 0.3}),
    "airways": (0.25, {"emphysema": 0.7, "bronchiectasis": 0.3, "peribronchial_thickening": 0.4,
                       "mosaic_attenuation_pattern": 0.3, "pulmonary_fibrotic_sequela": 0.2}),
    "tumour": (0.17, {"lung_nodule": 0.95, "lymphadenopathy": 0.5, "pleural_effusion": 0.22, "atelectasis": 0.2,
                      "medical_material": 0.35, "pericardial_effusion": 0.1}),
    "scars": (0.15, {"pulmonary_fibrotic_sequela": 0.85, "bronchiectasis": 0.25, "lung_nodule": 0.2}),
}  # fmt: skip
# By itself, whatever else there is.
ALONE: Mapping[str, float] = {
    "lung_nodule": 0.14, "hiatal_hernia": 0.13, "atelectasis": 0.1, "mosaic_attenuation_pattern": 0.05,
    "medical_material": 0.05, "pulmonary_fibrotic_sequela": 0.05, "cardiomegaly": 0.03, "pericardial_effusion": 0.05,
    "lymphadenopathy": 0.03, "bronchiectasis": 0.03, "lung_opacity": 0.04, "peribronchial_thickening": 0.02,
    "interlobular_septal_thickening": 0.02, "emphysema": 0.03, "consolidation": 0.02, "pleural_effusion": 0.02,
    "arterial_wall_calcification": 0.04, "coronary_artery_wall_calcification": 0.03,
}  # fmt: skip
COLLAPSE_SHARE = 0.6  # of subjects with pleural fluid


def draw_findings(rng: np.random.Generator, only: str | None = None) -> tuple[str, ...]:
    """The findings of a subject, in the order of `FINDINGS`; `only` asks for one of them, or for none ("normal")."""
    if only is not None and only not in ("normal", *FINDINGS):
        raise ValueError(f"only={only!r} is no kind of simulated chest study; there are normal, {', '.join(FINDINGS)}")
    if only is not None:
        return () if only == "normal" else (only,)
    if rng.random() < NORMAL_SHARE:
        return ()
    found: set[str] = set()
    for share, brings in CONDITIONS.values():
        ill = rng.random() < share
        found |= {name for name, chance in brings.items() if rng.random() < chance and ill}
    found |= {name for name, chance in ALONE.items() if rng.random() < chance}
    if "pleural_effusion" in found and rng.random() < COLLAPSE_SHARE:
        found.add("atelectasis")
    last = str(rng.choice(list(ALONE)))
    return tuple(name for name in FINDINGS if name in (found or {last}))


def draw_ratio(rng: np.random.Generator, *, wide: bool) -> float:
    """Cardiothoracic ratio: above a half is a wide heart (Danzer 1919); none is drawn close to it."""
    return float(rng.uniform(0.545, 0.64) if wide else rng.uniform(0.38, 0.475))
