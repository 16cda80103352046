"""What numbers and coded values of a header say of its sequence: what it can be, and what it is called.

A family's bounds hold every way we know to acquire it from 0.2 T to 7 T: they are wide, they exclude and do not choose.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tomoglot.studies.acquisition import Acquisition
from tomoglot.studies.naming_words import fold

HIGHEST_B_VALUE = 20000.0  # s/mm²; what is higher is a code, not a b-value
_ANY = (0.0, math.inf)
_SCANS = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "GR", "EPI": "EP", "INVERSION": "IR"}
_KNOWN_SCANS = frozenset({"SE", "GR", "IR", "EP", "RM"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """One way to acquire a family: codes of which one set must be there, codes that must not be, and ranges."""

    family: str
    scans: tuple[frozenset[str], ...]
    never: frozenset[str]
    ranges: tuple[tuple[float, float], ...]  # repetition, echo, inversion (ms), flip


def _bounds(family: str, scans: str, never: str = "", **ranges: tuple[float, float]) -> _Bounds:
    return _Bounds(
        family=family,
        scans=tuple(frozenset(one.split("+")) for one in scans.split()),
        never=frozenset(never.split()),
        ranges=tuple(ranges.get(name, _ANY) for name in ("repetition", "echo", "inversion", "flip")),
    )


_BOUNDS = (
    _bounds("t1", "SE", "EP IR GR", repetition=(0, 1300), echo=(0, 35)),
    _bounds("t1", "IR", "EP", repetition=(0, 6000), echo=(0, 40), inversion=(250, 1300)),
    _bounds("t1", "GR", "EP", repetition=(0, 16), echo=(0, 8)),
    # A 3D gradient echo with a repetition like a time of flight is T1-weighted only from about its flip angle on.
    _bounds("t1", "GR", "EP", repetition=(16, 60), echo=(0, 12), flip=(25, 180)),
    _bounds("t1", "GR", "EP", repetition=(60, 600), echo=(0, 14), flip=(40, 180)),
    _bounds("t1", "GR", "EP", repetition=(1000, 6000), echo=(0, 6), flip=(0, 16)),
    _bounds("t2", "SE", "EP IR GR", repetition=(900, math.inf), echo=(50, 600)),
    _bounds("pd", "SE", "EP IR GR", repetition=(1400, math.inf), echo=(0, 58)),
    _bounds("flair", "IR", "EP GR", repetition=(3500, math.inf), echo=(58, math.inf), inversion=(1200, 3300)),
    _bounds("stir", "IR", "EP GR", repetition=(1400, math.inf), inversion=(60, 280)),
    _bounds("t2s", "GR", "EP IR", repetition=(15, math.inf), echo=(6.5, 80), flip=(0, 50)),
    _bounds("swi", "GR", "IR", repetition=(15, 150), echo=(4.5, 60)),
    _bounds("mra", "GR", "EP IR", repetition=(12, 150), echo=(0, 12)),
    _bounds("mra", "GR", "EP IR", repetition=(0, 12), echo=(0, 6), flip=(16, 90)),
    _bounds("in_phase", "GR", "EP IR", repetition=(0, 20), echo=(0, 12)),
    _bounds("in_phase", "GR", "EP IR", repetition=(60, 400), echo=(0, 12), flip=(40, 180)),
    _bounds("out_of_phase", "GR", "EP IR", repetition=(0, 20), echo=(0, 12)),
    _bounds("out_of_phase", "GR", "EP IR", repetition=(60, 400), echo=(0, 12), flip=(40, 180)),
    _bounds("dixon_fat", "GR SE", "EP"),
    _bounds("dwi", "EP", "GR", echo=(38, 200)),
    _bounds("adc", "EP", "GR", echo=(38, 200)),
    _bounds("asl", "EP GR RM", repetition=(2000, math.inf), echo=(7, 60)),
    _bounds("perfusion", "EP", "IR", echo=(12, 110)),
    _bounds("perfusion", "GR", "IR EP", repetition=(12, 100), echo=(12, 65)),  # shifted echoes, susceptibility
    _bounds("perfusion", "GR", "IR EP", repetition=(0, 12), echo=(0, 6)),  # T1-weighted, dynamic
    _bounds("bold", "EP", "IR", repetition=(200, math.inf), echo=(12, 80)),
    _bounds("bold", "GR", "IR", repetition=(500, math.inf), echo=(12, 80), flip=(35, 180)),
)
NUM_FAMILIES = len({one.family for one in _BOUNDS})
# Philips writes SE for an echo-planar spin echo, and IR where fat is inverted before it. A T2-weighted series has the
# same codes and timing: words for diffusion count only where a b-value stands in the header too.
_SPIN_ECHO_DIFFUSION = (
    _bounds("dwi", "SE", "GR", repetition=(900, math.inf), echo=(38, 200)),
    _bounds("adc", "SE", "GR", repetition=(900, math.inf), echo=(38, 200)),
)
# Values of Image Type (and of its enhanced flavours) after the first two.
_TYPE_FAMILY = {
    "adc": "ADC", "dwi": "TRACEW TRACE DIFFUSION ISO", "flair": "FLUID_ATTENUATED", "t2s": "T2_STAR", "stir": "STIR",
    "pd": "PROTON_DENSITY", "asl": "ASL", "perfusion": "PERFUSION", "bold": "FMRI", "mra": "ANGIO TOF", "swi": "SWI",
    "in_phase": "IN_PHASE IP", "out_of_phase": "OPP_PHASE OUT_PHASE OP", "dixon_fat": "FAT F", "t1": "T1 UNI",
    "t2": "T2",
}  # fmt: skip
_DERIVED = (
    "MPR CSA_MPR MIP CSA_MIP MAX_IP MIN_IP MNIP MINIP PROJECTION_IMAGE COLLAPSE SCREEN_SAVE REFORMATTED SUB FA TENSOR "
    "SUBTRACTION RGB VRT CSA_3D TTP MTT TMAX CBF CBV RCBF RCBV RELCBF RELCBV PHASE P PHASE_MAP R I QUANTITY VELOCITY "
    "CSA_REPORT CSA_RESAMPLED DOSE_INFO PERFUSION_MAP T1_MAP T2_MAP T2*_MAP R2_MAP R2*_MAP B0_MAP B1_MAP"
)
DERIVED_TYPES = frozenset(_DERIVED.split())
# Sequence names: Siemens' short codes first, then what Canon, Hitachi and United Imaging write.
_NAMES = tuple(
    (re.compile(pattern), scans, family)
    for pattern, scans, family in (
        (r"ep_?b[0-9]", "EP", "dwi"), (r"ep(?:2d)?_?fid", "EP GR", ""), (r"ep", "EP", ""), (r"see?p", "EP", ""),
        (r"dwi", "EP", "dwi"), (r"tir|spc_?ir|fir|ir|fse_arir", "SE IR", ""), (r"spc|tse|fse|se|h2d", "SE", ""),
        (r"swi|gre_swi|fe_fsbb", "GR", "swi"), (r"tfl", "GR", "t1"), (r"me[23]d", "GR", "t2s"),
        (r"fl|gre|fe|ge$|ffe", "GR", ""),
    )
)  # fmt: skip
_NO_NAME_SEQUENCES = re.compile(r"ci3d|tfi|de3d|fm2d|svs|csi")
_FAT_TURN_MS_T = 6.9  # fat turns once against water in 6.9 ms at 1 T: 3.4 ppm of 42.58 MHz/T


def number(value: float | None) -> float | None:
    """`value` if it is finite and above 0: scanners write 0 for "does not apply"."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def image_types(header: Acquisition) -> frozenset[str]:
    """Values of Image Type after the first two, in capitals, spaces as underscores."""
    return frozenset(one.strip().upper().replace(" ", "_") for one in header.image_type[2:8])


def _sequence_name(header: Acquisition) -> str:
    return header.sequence_name[:64].strip().lstrip("*").casefold()


def _known_name(header: Acquisition) -> tuple[str, str]:
    """Scanning codes and family that the sequence's name stands for; empty where it is not known."""
    name = _sequence_name(header)
    return next(((scans, family) for pattern, scans, family in _NAMES if pattern.match(name)), ("", ""))


def scan_codes(header: Acquisition) -> frozenset[str]:
    """SE, GR, IR, EP and RM, from Scanning Sequence and from the sequence's name."""
    told = {one.strip().upper() for one in header.scanning_sequence} | set(_known_name(header)[0].split())
    return frozenset(_SCANS.get(one, one) for one in told) & _KNOWN_SCANS


def has_no_name(header: Acquisition) -> bool:
    """Whether the sequence's name is of a kind that we have no name for (balanced, field maps, spectroscopy)."""
    return _NO_NAME_SEQUENCES.match(_sequence_name(header)) is not None


def possible_families(header: Acquisition, *, worded: bool) -> set[str]:
    """Families that no number and no scanning code of the header excludes; `worded`: words will choose among them."""
    numbers = [number(one) for one in (header.repetition_ms, header.echo_ms, header.inversion_ms, header.flip_deg)]
    vendor, scans = fold(header.manufacturer), scan_codes(header)
    table: tuple[_Bounds, ...] = _BOUNDS
    codes_epi = "siemens" in vendor or vendor.startswith(("ge", "general"))
    told = number(header.b_value) is not None or "adc" in typed_families(header)
    # Without a word, what these vendors call a spin echo may still be diffusion.
    if told or (not codes_epi and (header.b_value is not None or not worded)):
        table += _SPIN_ECHO_DIFFUSION
    left = set()
    for one in table:
        inside = all(n is None or low <= n <= high for n, (low, high) in zip(numbers, one.ranges, strict=True))
        if inside and (not scans or (any(need <= scans for need in one.scans) and not one.never & scans)):
            left.add(one.family)
    return left


def typed_families(header: Acquisition) -> set[str]:
    """Families that Image Type names."""
    types = image_types(header)
    told = {family for family, values in _TYPE_FAMILY.items() if types & set(values.split())}
    return told - {"dwi"} if "adc" in told else told


def coded_families(header: Acquisition) -> dict[str, str]:
    """Families that a coded value names outright (image type, b-value, sequence name), and which value it was."""
    told = {family: f"image type says {family}" for family in sorted(typed_families(header))}
    b_value = number(header.b_value)
    if b_value is not None and b_value <= HIGHEST_B_VALUE and "adc" not in told:
        told["dwi"] = f"b-value {b_value:g} s/mm²"
    family = _known_name(header)[1]
    if family and not (family == "dwi" and "adc" in told):
        told[family] = f"{told[family]}, sequence name of {family}" if family in told else f"sequence name of {family}"
    return told


def by_fat_phase(header: Acquisition, families: set[str]) -> set[str]:
    """`families` without the one of in and out of phase that the echo time at this field strength excludes."""
    echo_ms, field_tesla = number(header.echo_ms), number(header.field_tesla)
    if not families & {"in_phase", "out_of_phase"} or echo_ms is None or field_tesla is None:
        return families
    if not 0.5 < field_tesla < 4:
        return families
    turn = echo_ms * field_tesla / _FAT_TURN_MS_T % 1
    if 0.3 < turn < 0.7:
        return families - {"in_phase"}
    return families - {"out_of_phase"} if turn < 0.2 or turn > 0.8 else families
