"""Signal of each sequence from the tissues of the abdomen, at 1.5 and at 3 T.

Sources. T1 and T2 of organs: de Bazelaire 2004, Radiology 230:652 (both fields); blood: Stanisz 2005, Magn Reson Med
54:507. T2 of lesions at 1.5 T: Eur Radiol 2002;12:2273 (liver 54, FNH 66, malignant 85, haemangioma 155, cyst 583 ms)
and Radiology 1994;193:43 (malignant 76, haemangioma 142, cyst 341 ms); as their liver is slower than ours, the ratio
to the liver is kept, and the same ratio is taken at 3 T. ADC: El-Badrawy 2014, Open J Radiol 4:136 (cyst, haemangioma,
FNH; theirs are high); Acad Radiol 2009;16:1208 (HCC 1.08); Mungai 2014, Medicine 93:e40 (malignant 0.98, benign 1.43).
Pus is given a low ADC, as textbooks teach; El-Badrawy's five abscesses had 1.94. T2 of blood is short, for flow. T1 of
lesions, T2 and ADC of their parts, values of contents, lung and bone, and all inflows and volumes are ours, chosen so
that the curves behave as the textbook says; none is fitted to patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.phantom.liver.uptake import Circulation, Uptake
from tomoglot.studies.phantom.signal import Tissue, spin_echo, spoiled_echo, with_agent

SEQUENCES = ("t2w", "dwi", "in_phase", "out_of_phase", "pre_contrast", "arterial", "portal_venous", "delayed")
PHASES = SEQUENCES[4:]
FIELDS_T = (1.5, 3.0)
B_VALUE = 0.8  # ms/um2, that is 800 s/mm2
FAT = Tissue(343, 58, 1.0, 0.05, 30), Tissue(382, 68, 1.0, 0.05, 20)  # of the fat protons alone, at 1.5 and 3 T


NONE = Uptake()


@dataclass(frozen=True, slots=True)
class Matter:
    """T1 and T2 of water in ms at 1.5 and 3 T, proton density, ADC in 1e-3 mm2/s, share of fat protons, uptake."""

    t1_ms: tuple[float, float]
    t2_ms: tuple[float, float]
    density: float
    adc: float
    fat: float = 0.0
    uptake: Uptake = NONE


TABLE: Mapping[str, Matter] = {
    "liver": Matter((586, 809), (46, 34), 0.80, 1.15, 0.02, Uptake(0.20, 0.90, 0.28)),
    "spleen": Matter((1057, 1328), (79, 61), 0.84, 0.85, 0.0, Uptake(1.40, 0.0, 0.35)),
    "cortex": Matter((966, 1142), (87, 76), 0.86, 2.00, 0.0, Uptake(3.00, 0.0, 0.50)),
    "medulla": Matter((1412, 1545), (85, 81), 0.88, 2.00, 0.0, Uptake(0.45, 0.0, 0.55)),
    "pancreas": Matter((584, 725), (46, 43), 0.80, 1.35, 0.06, Uptake(1.30, 0.0, 0.30)),
    "gut": Matter((900, 1100), (60, 52), 0.80, 1.40, 0.0, Uptake(0.60, 0.0, 0.30)),
    "fluid": Matter((2200, 2600), (350, 300), 0.95, 2.60),
    "meal": Matter((1100, 1300), (95, 80), 0.90, 1.90),  # what lies in the stomach
    "bile": Matter((1900, 2200), (450, 400), 0.95, 2.80),
    "gas": Matter((1000, 1000), (10, 10), 0.01, 1.00),
    "lung": Matter((1100, 1200), (20, 15), 0.12, 1.00, 0.0, Uptake(1.0, 0.0, 0.20)),
    "muscle": Matter((856, 898), (27, 29), 0.78, 1.45, 0.02, Uptake(0.08, 0.0, 0.12)),
    "fat": Matter((700, 800), (50, 45), 0.90, 0.80, 0.92, Uptake(0.03, 0.0, 0.03)),
    "marrow": Matter((800, 900), (49, 49), 0.70, 0.50, 0.40, Uptake(0.15, 0.0, 0.15)),
    "disc": Matter((1100, 1250), (75, 65), 0.75, 1.50),
    "csf": Matter((4000, 4200), (1200, 1000), 1.00, 3.00),
    "aorta": Matter((1441, 1932), (35, 28), 0.80, 2.60, 0.0, Uptake(25.0, 0.0, 1.0)),
    "portal": Matter((1441, 1932), (48, 38), 0.80, 2.60, 0.0, Uptake(0.0, 25.0, 1.0)),
    "veins": Matter((1441, 1932), (48, 38), 0.80, 2.60, 0.0, Uptake(0.4, 2.4, 1.0)),
    # Lesions and their parts.
    "hcc": Matter((850, 1130), (68, 51), 0.82, 1.02, 0.0, Uptake(1.60, 0.0, 0.22)),
    "hcc_core": Matter((1150, 1450), (88, 66), 0.86, 1.45, 0.0, Uptake(0.08, 0.0, 0.10)),
    "capsule": Matter((800, 1050), (52, 40), 0.78, 1.10, 0.0, Uptake(0.22, 0.0, 0.62)),
    "icc": Matter((950, 1250), (76, 57), 0.83, 1.05, 0.0, Uptake(0.75, 0.0, 0.27)),
    "icc_core": Matter((1050, 1380), (66, 50), 0.82, 1.40, 0.0, Uptake(0.26, 0.0, 0.68, 12.0)),
    "metastasis": Matter((1000, 1300), (72, 54), 0.84, 0.92, 0.0, Uptake(0.80, 0.0, 0.22)),
    "metastasis_core": Matter((1250, 1550), (98, 73), 0.88, 1.45, 0.0, Uptake(0.06, 0.0, 0.16)),
    "cyst": Matter((2800, 3200), (480, 400), 1.00, 2.90),
    "haemangioma_0": Matter((1250, 1620), (130, 97), 0.92, 1.95, 0.0, Uptake(5.0, 0.0, 0.72)),
    "haemangioma_1": Matter((1250, 1620), (130, 97), 0.92, 1.95, 0.0, Uptake(1.4, 0.0, 0.68, 24.0)),
    "haemangioma_2": Matter((1250, 1620), (130, 97), 0.92, 1.95, 0.0, Uptake(0.8, 0.0, 0.64, 70.0)),
    "haemangioma_3": Matter((1300, 1650), (138, 103), 0.93, 2.05, 0.0, Uptake(0.5, 0.0, 0.62, 130.0)),
    "fnh": Matter((640, 880), (56, 41), 0.81, 1.30, 0.0, Uptake(1.60, 0.0, 0.33)),
    "scar": Matter((950, 1250), (92, 69), 0.86, 1.60, 0.0, Uptake(0.20, 0.0, 0.62)),
    "pus": Matter((1500, 1800), (140, 108), 0.92, 0.80),
    "wall": Matter((900, 1180), (66, 50), 0.82, 1.25, 0.0, Uptake(0.90, 0.0, 0.50)),
    "halo": Matter((700, 950), (58, 43), 0.83, 1.30, 0.0, Uptake(0.75, 0.55, 0.31)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """Field in tesla, and the share of fat signal that fat suppression leaves."""

    field_t: float = 1.5
    fat_left: float = 0.1

    @property
    def at(self) -> int:
        """Place of this field in pairs of values."""
        return FIELDS_T.index(self.field_t)


def echo(sequence: str, tissue: Tissue, scanner: Scanner) -> float:
    """Signal of one pool of protons (water, or fat) before fat suppression, in arbitrary units."""
    high = scanner.at == 1
    match sequence:
        case "t2w":
            return spin_echo(tissue, 4000.0, 80.0)
        case "dwi":
            return spin_echo(tissue, 5000.0, 62.0) * float(np.exp(-B_VALUE * tissue.adc))
        case "in_phase":  # echo times at which water and fat have turned by a whole and by half a turn
            return spoiled_echo(tissue, 150.0, 70.0, 2.3 if high else 4.6, tissue.t2s_ms)
        case "out_of_phase":
            return spoiled_echo(tissue, 150.0, 70.0, 1.15 if high else 2.3, tissue.t2s_ms)
        case "pre_contrast" | "arterial" | "portal_venous" | "delayed":
            return spoiled_echo(with_agent(tissue), 4.0, 12.0, 1.5, tissue.t2s_ms)
    raise ValueError(f"no simulated sequence {sequence!r}; there are {', '.join(SEQUENCES)}")


def pools(sequence: str, matter: Matter, scanner: Scanner, blood: Circulation) -> tuple[float, float]:
    """Signal of a tissue's water, and of its fat as it adds to the water: negative where they are out of phase."""
    t1_ms, t2_ms = matter.t1_ms[scanner.at], matter.t2_ms[scanner.at]
    agent_mm = blood.at(sequence, matter.uptake) if sequence in PHASES else 0.0
    # T2* in the abdomen is about half of T2 (liver near 25 ms at 1.5 T).
    water = Tissue(t1_ms, t2_ms, matter.density * (1.0 - matter.fat), matter.adc, 0.55 * t2_ms, agent_mm)
    fat = replace(FAT[scanner.at], density=matter.density * matter.fat)
    sign = {"in_phase": 1.0, "out_of_phase": -1.0}.get(sequence, scanner.fat_left)
    return echo(sequence, water, scanner), sign * echo(sequence, fat, scanner)


def signal(sequence: str, name: str, scanner: Scanner, blood: Circulation) -> float:
    """Noise-free signal of a tissue of the table."""
    return abs(sum(pools(sequence, TABLE[name], scanner, blood)))


def jittered(rng: np.random.Generator, *, liver_fat: float, lesion_fat: float = 0.0) -> dict[str, Matter]:
    """The table of one subject: T1, T2 and density moved by 4 %, inflow and volume by 10 %, within two deviations."""
    moved = {}
    for name, matter in TABLE.items():
        t1, t2, density = 1.0 + 0.04 * rng.standard_normal(3).clip(-2, 2)
        inflow, volume = 1.0 + np.array([0.10, 0.05]) * rng.standard_normal(2).clip(-2, 2)
        uptake = matter.uptake
        moved[name] = replace(
            matter,
            t1_ms=(matter.t1_ms[0] * t1, matter.t1_ms[1] * t1),
            t2_ms=(matter.t2_ms[0] * t2, matter.t2_ms[1] * t2),
            density=matter.density * density,
            uptake=Uptake(
                uptake.arterial * inflow, uptake.portal * inflow, uptake.volume * volume, uptake.delay_s * inflow
            ),
            fat={"liver": liver_fat, "halo": liver_fat, "hcc": lesion_fat}.get(name, matter.fat),
        )
    return moved


def signals(
    sequence: str, names: tuple[str, ...], table: Mapping[str, Matter], scanner: Scanner, blood: Circulation
) -> NDArray[np.float32]:
    """Water and fat signal (2, tissue) of the named tissues, divided by that of nominal liver before contrast."""
    before = "pre_contrast" if sequence in PHASES else sequence
    nominal = signal(before, "liver", scanner, blood)
    values = [pools(sequence, table[name], scanner, blood) for name in names]
    return (np.asarray(values) / nominal).T.astype(np.float32)
