"""One DICOM header without identity: each attribute handled by the profile, at every depth, into a new dataset.

What the profile does not list is handled by what it is: private attributes and those of no dictionary go, and so do
names, free text and unknown bytes; UIDs that are not the standard's own are mapped; dates follow the date option.
"""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tomoglot.studies.deidentify.profile import Options, action_for
from tomoglot.studies.deidentify.text import deidentify_text
from tomoglot.studies.dicom import values
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.study import Rejected

try:
    import pydicom
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
except ImportError as error:
    raise ValueError("reading DICOM needs pydicom: pip install 'tomoglot[dicom]'") from error

_TEXT = frozenset(("LO", "LT", "SH", "ST", "UC", "UT"))
_FREE = frozenset(("PN", "LT", "ST", "UT", "UC", "UR", "UN", "AE"))
_TIME = frozenset(("DA", "DT", "TM"))
_TIME_ZONE = 0x00080201
# What a moved date, a time of day and a time zone look like: anything else that stands in their place is emptied.
_FORMS = {
    "DA": r"\d{4,8}",
    "DT": r"\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4})?",
    "TM": r"\d{2}:?(?:\d{2}:?(?:\d{2}(?:\.\d{1,6})?)?)?",
    "SH": r"[+-]\d{4}",
}
_DUMMY: dict[str, Any] = {"AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "DS": "0", "IS": "0"}
_NUMBERS = frozenset(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"))
_LONGEST = {"SH": 16, "LO": 64, "CS": 16, "AE": 16}
_DEEPEST = 16
_IDENTIFIERS = (
    "PatientID", "OtherPatientIDs", "AccessionNumber", "AdmissionID", "InstitutionName", "InstitutionAddress",
    "IssuerOfPatientID", "PatientTelephoneNumbers", "PatientAddress", "MedicalRecordLocator", "MilitaryRank",
)  # fmt: skip
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """What a header says about who it is of: names, and numbers and places, to be removed from text."""

    names: tuple[str, ...]
    identifiers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What holds throughout one dataset."""

    pseudonyms: Pseudonyms
    options: Options
    subject: str
    days: int
    identities: Identities
    known: re.Pattern[str] | None = field(repr=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Read and write without pydicom's warnings and log lines, which quote values, and without its checks of values."""
    settings = pydicom.config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    with values.quiet():
        settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            yield
        finally:
            settings.reading_validation_mode, settings.writing_validation_mode = before


def identity_of(dataset: Dataset, options: Options) -> str:
    """What the subject's pseudonym is made from: the patient id; the study's UID where there is none and that is asked.

    Raises:
        Rejected: `no-patient-id`.
    """
    patient_id = " ".join(_values(dataset.get("PatientID")))
    if not patient_id and not options.subject_from_study:
        raise Rejected(
            "no-patient-id",
            "no Patient ID: two visits of one person could land on two sides of a split. Where every study is of "
            "another person, say so (subject from study)",
        )
    return patient_id or str(dataset.get("StudyInstanceUID") or "")


def identities_of(dataset: Dataset) -> Identities:
    """Every person's name at any depth, and the patient's and the institution's identifiers."""
    names = {str(element.value) for element in _elements(dataset) if element.VR == "PN" and element.value}
    found = (value for keyword in _IDENTIFIERS for value in _values(dataset.get(keyword)))
    # Short ones ("1", "MR") would cut words that are not theirs.
    return Identities(
        names=tuple(sorted(names)), identifiers=tuple(sorted({value for value in found if len(value) > 3}))
    )


def deidentify_dataset(dataset: Dataset, pseudonyms: Pseudonyms, options: Options) -> Dataset:
    """A new dataset after the basic profile with `options`; the pixel data are the same bytes, the preamble is empty.

    Raises:
        Rejected: `no-patient-id` and `no-identity` where patient or study are not named, `too-deep` for sequences
            nested too far, `overlay-in-pixels` where an overlay is stored in unused bits of the pixels.
    """
    with quiet():
        identity, identities = identity_of(dataset, options), identities_of(dataset)
        words = [part for name in identities.names for part in re.split(r"[\s^=,]+", name) if len(part) > 2]
        known = sorted({re.escape(word) for word in (*words, *identities.identifiers)}, key=len, reverse=True)
        rules = _Rules(
            pseudonyms=pseudonyms,
            options=options,
            subject=pseudonyms.subject(identity),
            days=pseudonyms.days(identity),
            identities=identities,
            known=re.compile(rf"(?<![^\W_])(?:{'|'.join(known)})(?![^\W_])", re.IGNORECASE) if known else None,
        )
        clean = _clean(dataset, rules, depth=0)
        _sign(clean, rules)
        clean.file_meta = _file_meta(dataset, clean)
        clean.preamble = b"\0" * 128
    return clean


def _clean(dataset: Dataset, rules: _Rules, *, depth: int) -> Dataset:
    if depth > _DEEPEST:
        raise Rejected("too-deep", f"sequences nested more than {_DEEPEST} deep")
    clean = Dataset()
    for element in _readable(dataset):
        tag = element.tag
        # An overlay's plane is removed, and with it what describes the plane.
        if tag.is_private or tag.element == 0 or tag.group < 0x0008 or tag.group & 0xFF00 in (0x5000, 0x6000):
            if tag.group & 0xFF00 == 0x6000 and tag.element == 0x0102 and element.value not in (0, None, ""):
                raise Rejected("overlay-in-pixels", f"an overlay is stored in bit {int(element.value)} of the pixels")
            continue
        kept = _handled(element, rules, depth)
        if kept is not None:
            clean[tag] = kept
    return clean


def _handled(element: DataElement, rules: _Rules, depth: int) -> DataElement | None:
    """The element that takes the place of `element`, or None where it goes."""
    try:
        allowed = (given := dictionary_VR(element.tag)).split(" or ")
    except KeyError:
        return None
    action = action_for(element.tag, allowed[0], rules.options)
    if action == "X":
        return None
    if action in ("Z", "D") or element.VR not in (*allowed, given):
        # A value representation that is not the attribute's own: whatever it is, it is not what the profile means.
        return _emptied(element, allowed[0], rules) if action == "Z" else _dummy(element, allowed[0], rules, action)
    if element.VR == "SQ":
        items = [_clean(item, rules, depth=depth + 1) for item in element.value]
        return DataElement(element.tag, "SQ", Sequence(items))
    if action == "K" or (element.VR == "UI" and "uids" in rules.options.retain):
        return _kept(element, rules)
    if element.VR == "UI":
        return _mapped(element, rules)
    if element.VR in _TIME or element.tag == _TIME_ZONE:
        return _timed(element, rules)
    if action == "C":
        return _described(element, rules) if element.VR in _TEXT else _dummy(element, allowed[0], rules, "D")
    return None if element.VR in _FREE else _kept(element, rules)


def _emptied(element: DataElement, vr: str, rules: _Rules) -> DataElement:
    if element.tag == 0x00100010:
        return DataElement(element.tag, vr, rules.subject)
    return DataElement(element.tag, vr, Sequence() if vr == "SQ" else None)


def _dummy(element: DataElement, vr: str, rules: _Rules, action: str) -> DataElement | None:
    if action not in ("D", "U"):
        return None
    if element.tag == 0x00100020:
        return DataElement(element.tag, vr, rules.subject)
    if vr == "SQ":
        return DataElement(element.tag, vr, Sequence([Dataset()]))
    if vr == "UI":
        return DataElement(element.tag, vr, rules.pseudonyms.uid(str(element.value) or "none"))
    value = 0 if vr in _NUMBERS else b"\0\0" if vr.startswith("O") or vr == "UN" else _DUMMY.get(vr, "REMOVED")
    return DataElement(element.tag, vr, value)


def _mapped(element: DataElement, rules: _Rules) -> DataElement:
    made = [
        value if UID(value).is_valid and UID(value).name != value else rules.pseudonyms.uid(value)
        for value in _values(element.value)
    ]
    return DataElement(element.tag, "UI", made if len(made) != 1 else made[0])


def _timed(element: DataElement, rules: _Rules) -> DataElement | None:
    """Dates moved by whole days; times of day stay, as these moves leave them true."""
    if not rules.options.shifts_dates:
        return _kept(element, rules) if rules.options.keeps_dates else None
    given = _values(element.value)
    moved = [_moved(value, rules.days) if element.VR in ("DA", "DT") else value for value in given]
    good = [value for value in moved if value is not None and re.fullmatch(_FORMS[element.VR], value)]
    value = None if len(good) != len(given) or not good else good[0] if len(good) == 1 else good
    return DataElement(element.tag, element.VR, value)


def _moved(value: str, days: int) -> str | None:
    digits = value.strip().replace(".", "", 2) if re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", value.strip()) else value.strip()
    # A date known to the month or year only is moved as its first day, and stays as vague as it was.
    start = re.match(r"\d{8}|\d{6}(?!\d)|\d{4}(?!\d)", digits)
    if start is None:
        return None
    given = start.group()
    try:
        date = datetime.date.fromisoformat((given + "0101"[len(given) - 4 :])[:8])
        return (date + datetime.timedelta(days=days)).strftime("%Y%m%d").zfill(8)[: len(given)] + digits[len(given) :]
    except (ValueError, OverflowError):
        return None


def _described(element: DataElement, rules: _Rules) -> DataElement:
    found = rules.identities
    made = [
        deidentify_text(value, names=found.names, identifiers=found.identifiers)[: _LONGEST.get(element.VR)]
        for value in _values(element.value)
    ]
    return DataElement(element.tag, element.VR, made if len(made) != 1 else made[0])


def _kept(element: DataElement, rules: _Rules) -> DataElement | None:
    """The element as it is, unless somebody typed the patient's name or number into it; ages above 89 are 90."""
    if element.VR == "AS":
        years = [re.sub(r"^(?:09\d|[1-9]\d\d)Y$", "090Y", value) for value in _values(element.value)]
        return DataElement(element.tag, "AS", years if len(years) != 1 else years[0])
    if element.VR in _TEXT | {"CS", "AE"} and rules.known and rules.known.search("\\".join(_values(element.value))):
        return DataElement(element.tag, element.VR, None)
    return copy.copy(element)


def _sign(clean: Dataset, rules: _Rules) -> None:
    """Say in the dataset what was done to it (PS3.15 E.1.1), and nothing of what an earlier hand said."""
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.PatientID = rules.subject
    clean.PatientName = rules.subject
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "tomoglot: DICOM PS3.15 basic profile 2026c"
    codes = []
    for value, meaning in rules.options.codes:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    clean.DeidentificationMethodCodeSequence = Sequence(codes)
    options = rules.options
    done = "UNMODIFIED" if options.keeps_dates else "MODIFIED" if options.shifts_dates else "REMOVED"
    clean.LongitudinalTemporalInformationModified = done


def _file_meta(dataset: Dataset, clean: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = clean.get("SOPClassUID") or ""
    meta.MediaStorageSOPInstanceUID = clean.get("SOPInstanceUID") or ""
    given = getattr(dataset, "file_meta", None)
    implicit = dataset.original_encoding[0] is not False
    meta.TransferSyntaxUID = (given.get("TransferSyntaxUID") if given else None) or (
        ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    )
    return meta


def _readable(dataset: Dataset) -> Iterator[DataElement]:
    """The elements that can be read: what cannot be understood cannot be cleaned, and goes."""
    for tag in sorted(dataset.keys()):
        try:
            element = dataset[tag]
        except _UNREADABLE:
            continue
        if isinstance(element, DataElement):
            yield element


def _elements(dataset: Dataset, depth: int = 0) -> Iterator[DataElement]:
    for element in _readable(dataset):
        if element.VR == "SQ" and depth < _DEEPEST:
            for item in element.value:
                yield from _elements(item, depth + 1)
        yield element


def _values(value: Any) -> list[str]:
    if value is None or isinstance(value, bytes):
        return []
    several = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    return [str(one).strip(" \0") for one in several if str(one).strip(" \0")]
