"""Hounsfield units of each tissue, without contrast agent at about 120 kV, and how much they vary between subjects.

Air and water are the ends of the scale by definition. Soft tissues, fat and bone follow from the compositions of
ICRU 44 by the stoichiometric calibration (Schneider 2000, Phys Med Biol 45:459); where a clinical threshold says what
a tissue must be above or below, it is named beside the value, and a test holds the value on its side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

AIR_HU = -1000.0
# Value, and standard deviation between subjects.
TISSUES_HU: Mapping[str, tuple[float, float]] = {
    "skin": (20.0, 5.0),
    "fat": (-98.0, 6.0),
    "muscle": (52.0, 5.0),
    "gland": (10.0, 15.0),
    "blood": (42.0, 4.0),
    "heart": (44.0, 3.0),
    "liver": (56.0, 8.0),
    "spleen": (47.0, 4.0),
    "gut": (38.0, 5.0),
    "meal": (22.0, 12.0),
    "cord": (28.0, 4.0),
    "disc": (75.0, 12.0),
    "cartilage": (95.0, 20.0),
    "marrow": (
        155.0,
        40.0,
    ),  # trabecular bone of a vertebra, 100 to 210 by age (Pickhardt 2013, Ann Intern Med 158:588)
    "cortex": (720.0, 90.0),
    "airway_wall": (15.0, 8.0),
    "air": (-995.0, 2.0),  # within airways and bowel
    # Findings.
    "node": (36.0, 5.0),
    "nodule": (32.0, 10.0),
    "granuloma": (380.0, 90.0),
    "consolidation": (34.0, 8.0),
    "collapsed": (42.0, 8.0),  # atelectasis
    "scar": (30.0, 12.0),
    "septum": (20.0, 8.0),
    "effusion": (9.0, 4.0),  # simple fluid: 0 to 20
    "bulla": (-978.0, 5.0),  # emphysema: below -950 (Gevenois 1996, Am J Respir Crit Care Med 154:187)
    "calcium": (760.0, 160.0),  # calcified plaque: above 130 (Agatston 1990, J Am Coll Cardiol 15:827)
    "polymer": (1500.0, 150.0),  # a radio-opaque catheter
    "metal": (3000.0, 40.0),  # the scale ends at 3071
}


def draw_table(rng: np.random.Generator) -> dict[str, float]:
    """Hounsfield units of one subject's tissues."""
    offs = rng.standard_normal(len(TISSUES_HU)).clip(-2, 2)
    return {
        name: value + spread * float(off) for (name, (value, spread)), off in zip(TISSUES_HU.items(), offs, strict=True)
    }
