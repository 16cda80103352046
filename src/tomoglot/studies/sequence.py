"""One name for what a series shows, whatever a table, a file name or a scanner calls it."""

from __future__ import annotations

import re

from tomoglot.studies.study import Rejected

KNOWN_SEQUENCES = (
    "t1w", "t1c", "t2w", "flair", "pd", "dwi", "adc", "t2s", "swi", "asl", "ct",
    "stir", "mra", "perfusion", "bold", "in_phase", "out_of_phase", "dixon_fat",
    "pre_contrast", "arterial", "portal_venous", "delayed", "hepatobiliary",
    "ct_contrast", "ct_arterial", "ct_portal_venous", "ct_delayed", "ct_angiography", "ct_perfusion",
    "cxr_frontal", "cxr_lateral",
)  # fmt: skip

# Compared without case, spaces, dots, dashes, plus signs and underscores; a star is kept, for T2*.
_OTHER_NAMES = {
    "t1w": "t1 t1w t1n t1wi t1weighted t1pre t1native mprage t1mprage spgr t1wmprage",
    "t1c": "t1c t1ce t1cw t1gd t1post t1postgd t1contrast t1wc t1wce t1wgd t1wpost t1km cet1 cet1w t1gad",
    "t2w": "t2 t2w t2wi t2weighted t2tse t2fse",
    "flair": "flair t2flair t2wflair flairw t2f t2fl darkfluid",
    "pd": "pd pdw pdwi protondensity",
    "dwi": "dwi dw diffusion trace dwitrace b1000 isodwi",
    "adc": "adc adcmap",
    "t2s": "t2s t2star t2starw t2* t2*w t2sw gre t2gre t2wgre",
    "swi": "swi sw susceptibility",
    "asl": "asl perfusionasl",
    "ct": "ct ncct",
    "stir": "stir t2stir",
    "mra": "mra tof tofmra angio mrangiography pcmra cemra",
    "perfusion": "perfusion perf dsc dce dscperfusion",
    "bold": "bold fmri",
    "in_phase": "inphase ip t1ip t1inphase",
    "out_of_phase": "outofphase outphase oop op opp opposedphase t1oop t1outofphase",
    "dixon_fat": "dixonfat fatonly",
    "pre_contrast": "precontrast dynpre",
    "arterial": "arterial arterialphase lateart latearterial dynart",
    "portal_venous": "portalvenous portalvenousphase portal venous pvp",
    "delayed": "delayed delayedphase delay latephase",
    "hepatobiliary": "hepatobiliary hepatobiliaryphase hbp",
    "ct_contrast": "ctcontrast cect ctpost",
    "ct_arterial": "ctarterial ctart",
    "ct_portal_venous": "ctportalvenous ctportal ctvenous",
    "ct_delayed": "ctdelayed",
    "ct_angiography": "ctangiography cta ctpa",
    "ct_perfusion": "ctperfusion ctp",
    "cxr_frontal": "cxrfrontal frontalcxr cxrpa cxrap",
    "cxr_lateral": "cxrlateral lateralcxr cxrlat cxrll",
}
_CANONICAL = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}
_SEPARATORS = re.compile(r"[\s._+-]+")
_WITH_B_VALUE = re.compile(r"dwi_b[0-9]{1,5}")
_TIDY = re.compile(r"[a-z0-9_]{1,40}")


def known_sequence(name: str) -> str | None:
    """Our name for a sequence that is known under `name`, or None."""
    return _CANONICAL.get(_SEPARATORS.sub("", name.lower()))


def canonical_sequence(name: str) -> str:
    """Our name for the sequence called `name`: "T1Gd" is `t1c`, "T2-FLAIR" is `flair`.

    A name that is not known but tidy (letters, digits, underscores) is kept in lower case, so that a sequence of
    the user's own needs no list to be edited.

    Raises:
        Rejected: `bad-sequence-name`, for anything else.
    """
    known = known_sequence(name)
    if known is not None:
        return known
    tidy = name.strip().lower().replace("-", "_").replace(" ", "_")
    if not _TIDY.fullmatch(tidy):
        raise Rejected(
            "bad-sequence-name",
            f"a sequence name of {len(name)} characters is not known and not made of at most 40 of a-z, 0-9 and _; "
            f"known: {', '.join(KNOWN_SEQUENCES)}",
        )
    return tidy


def base_sequence(name: str) -> str:
    """Our name without b-value or CT phase: `dwi_b1000` is a `dwi`, `ct_arterial` a `ct`; others stay themselves."""
    if _WITH_B_VALUE.fullmatch(name):
        return "dwi"
    return "ct" if name.startswith("ct_") and name in KNOWN_SEQUENCES else name


def sequence_in_file_name(file_name: str) -> str | None:
    """Known sequence named by the parts of a file name, the last part first; None where no part names one."""
    stem = re.sub(r"\.nii(\.gz)?$", "", file_name, flags=re.IGNORECASE)
    parts = [part for part in re.split(r"[_\s.-]+", stem) if part]
    return next((name for part in reversed(parts) if (name := known_sequence(part)) is not None), None)
