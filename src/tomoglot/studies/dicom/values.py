"""Which header elements are read, and their values: text in any declared character set, and numbers."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from pydicom import charset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from tomoglot.studies.study import Rejected

# Text stays bytes until it is asked for; numbers are decoded; a sequence is a list of items.
Value: TypeAlias = "bytes | tuple[int | float, ...] | list[dict[int, Value]]"
Item: TypeAlias = dict[int, Value]

BINARY = {
    b"US": ("H", 2),
    b"SS": ("h", 2),
    b"UL": ("I", 4),
    b"SL": ("i", 4),
    b"FL": ("f", 4),
    b"FD": ("d", 8),
    b"UV": ("Q", 8),
    b"SV": ("q", 8),
}
_KEYWORDS = """
TransferSyntaxUID SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate AcquisitionTime AccessionNumber
Modality Manufacturer SeriesDescription PatientID StudyInstanceUID SeriesInstanceUID
SeriesNumber AcquisitionNumber InstanceNumber FrameOfReferenceUID TemporalPositionIdentifier TemporalPositionIndex
ProtocolName SequenceName PulseSequenceName ScanningSequence SequenceVariant RepetitionTime EchoTime EffectiveEchoTime
InversionTime InversionTimes FlipAngle EchoNumbers DiffusionBValue ContrastBolusAgent MRAcquisitionType TriggerTime
NominalCardiacTriggerDelayTime BodyPartExamined ConvolutionKernel KVP MagneticFieldStrength BurnedInAnnotation
SliceThickness SpacingBetweenSlices GantryDetectorTilt NumberOfFrames Rows Columns PixelSpacing ImagePositionPatient
ImageOrientationPatient BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation
RescaleSlope RescaleIntercept RescaleType PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PlanePositionSequence PlaneOrientationSequence
PixelMeasuresSequence PixelValueTransformationSequence MREchoSequence MRTimingAndRelatedParametersSequence
MRModifierSequence MRDiffusionSequence MRImageFrameTypeSequence CTImageFrameTypeSequence FrameContentSequence FrameType
CardiacSynchronizationSequence CTReconstructionSequence CTXRayDetailsSequence FrameAnatomySequence
ContrastBolusAgentSequence ExtendedOffsetTable ExtendedOffsetTableLengths DirectoryRecordSequence ReferencedFileID
ContentSequence
"""
_PEOPLE = """
PatientName OtherPatientNames PatientBirthName PatientMotherBirthName ReferringPhysicianName PerformingPhysicianName
NameOfPhysiciansReadingStudy OperatorsName RequestingPhysician PhysiciansOfRecord ResponsiblePerson
"""
TAG: dict[str, int] = {keyword: int(tag_for_keyword(keyword) or 0) for keyword in (_KEYWORDS + _PEOPLE).split()}
WANTED: dict[int, bytes] = {tag: dictionary_VR(tag).split()[0].encode() for tag in TAG.values()}
# Siemens, GE and Philips: b-value, mosaic count and the CSA header, in the first two blocks a maker may reserve.
PRIVATE = {
    "siemens-mosaic": (0x0019, b"SIEMENS MR HEADER", 0x0A, b"US"),
    "siemens-b": (0x0019, b"SIEMENS MR HEADER", 0x0C, b"IS"),
    "siemens-csa": (0x0029, b"SIEMENS CSA HEADER", 0x10, b"OB"),
    "ge-b": (0x0043, b"GEMS_PARM_01", 0x39, b"IS"),
    "philips-b": (0x2001, b"Philips Imaging DD 001", 0x03, b"FL"),
}
_BLOCKS = (0x10, 0x11)
for _group, _, _element, _vr in PRIVATE.values():
    for _block in _BLOCKS:
        WANTED[_group << 16 | _block] = b"LO"
        WANTED[_group << 16 | _block << 8 | _element] = _vr


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings and log lines away: they quote values, which may name a person."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def private(item: Item, name: str) -> Value | None:
    """Value of a maker's own element, only where the maker is named as the owner of its block."""
    group, creator, element, _ = PRIVATE[name]
    for block in _BLOCKS:
        owner = item.get(group << 16 | block)
        if isinstance(owner, bytes) and owner.strip(b" \0").upper() == creator.upper():
            return item.get(group << 16 | block << 8 | element)
    return None


def words(item: Item, tag: int) -> tuple[str, ...]:
    """Parts of a text between backslashes, without blanks; empty where it is absent. Only for codes in ASCII."""
    value = item.get(tag)
    if not isinstance(value, bytes) or not value:
        return ()
    return tuple(part.strip(" \0") for part in value.decode("latin-1").split("\\"))


def word(item: Item, tag: int) -> str:
    """First part of a text, or an empty one."""
    parts = words(item, tag)
    return parts[0] if parts else ""


def free_text(item: Item, tag: int, charsets: tuple[str, ...]) -> str:
    """Text that somebody typed, in the character sets that the file declares; what cannot be decoded is replaced."""
    value = item.get(tag)
    if not isinstance(value, bytes):
        return ""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    # pydicom tells of unknown character sets and broken escapes; both end in replaced characters here.
    with quiet():
        try:
            encodings = charset.convert_encodings(list(charsets) or [""])
            decoded = charset.decode_bytes(value, encodings, set())
        except (LookupError, UnicodeError, ValueError, TypeError):
            decoded = value.decode("latin-1")
    return str(decoded).strip(" \0")


def numbers(item: Item, tag: int) -> tuple[float, ...]:
    """Numbers of an element, decimal strings read; empty where it is absent, empty, or any part is no finite number."""
    value = item.get(tag)
    if isinstance(value, bytes):
        try:
            # Blanks and underscores pass float(), and are no decimal string.
            parts = [float(part) for part in value.replace(b"_", b"x").strip(b" \0").split(b"\\")] if value else []
        except ValueError:
            return ()
    elif isinstance(value, tuple):
        parts = [float(part) for part in value]
    else:
        return ()
    return tuple(parts) if all(map(math.isfinite, parts)) else ()


def number(item: Item, *tags: int) -> float | None:
    """First number of the first of `tags` that has one."""
    for tag in tags:
        found = numbers(item, tag)
        if found:
            return found[0]
    return None


def exact(item: Item, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` numbers; None where the element is absent or empty.

    Raises:
        Rejected: `bad-value`, something else is there: to go on without it would put voxels in the wrong place.
    """
    value = item.get(TAG[keyword])
    if not value or (isinstance(value, bytes) and not value.strip(b" \0")):
        return None
    found = numbers(item, TAG[keyword])
    if len(found) != count:
        raise Rejected("bad-value", f"{keyword} is not {count} finite number{'s' if count > 1 else ''}")
    return found


def items(item: Item, tag: int) -> list[Item]:
    """Items of a sequence; none where it is absent."""
    value = item.get(tag)
    return value if isinstance(value, list) else []


def people(item: Item, charsets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of people in a header, as DICOM writes them."""
    names = (free_text(item, TAG[keyword], charsets) for keyword in _PEOPLE.split())
    return tuple(name for name in names if name)
