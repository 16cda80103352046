"""What a DICOM file says before its pixels are touched: classic images, enhanced multi-frame images, Siemens mosaics.

Everything that is wrong with a file is one exception, `Rejected`; nothing in a file can make reading it cost more than
`Limits` allows.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from pydicom import uid

from tomoglot.studies.acquisition import Acquisition
from tomoglot.studies.dicom.elements import ITEM, NATIVE, PIXEL_DATA, SEQUENCE_END, Parsed, read_elements
from tomoglot.studies.dicom.files import MIB, Limits
from tomoglot.studies.dicom.header import Header
from tomoglot.studies.dicom.values import (
    TAG,
    Item,
    exact,
    free_text,
    items,
    number,
    numbers,
    people,
    private,
    word,
    words,
)
from tomoglot.studies.pool import WorkerDied, each
from tomoglot.studies.study import Frame, Rejected

STRUCTURED_REPORTS = frozenset(
    (uid.BasicTextSRStorage, uid.EnhancedSRStorage, uid.ComprehensiveSRStorage, uid.Comprehensive3DSRStorage)
)
_CLASSES = """
CTImageStorage EnhancedCTImageStorage LegacyConvertedEnhancedCTImageStorage MRImageStorage EnhancedMRImageStorage
LegacyConvertedEnhancedMRImageStorage EnhancedMRColorImageStorage PositronEmissionTomographyImageStorage
EnhancedPETImageStorage LegacyConvertedEnhancedPETImageStorage SecondaryCaptureImageStorage
MultiFrameGrayscaleByteSecondaryCaptureImageStorage MultiFrameGrayscaleWordSecondaryCaptureImageStorage
MultiFrameTrueColorSecondaryCaptureImageStorage
"""
# Screenshots and burnt-in results come as secondary capture: naming tells what they are.
IMAGES = frozenset(getattr(uid, name) for name in _CLASSES.split())
# Functional groups whose only item speaks of one frame (PS3.3, C.7.6.16).
_OUTER = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence")
_GROUPS = tuple(TAG[name] for name in TAG if name.endswith("Sequence") and name not in _OUTER)
_Rows = tuple[tuple[str, str, tuple[int, ...]], ...]


def _table(**rows: str) -> _Rows:
    """Fields of a record by how they are read: `field=Keyword`, or `field=Keyword|Keyword`, the first that is there."""
    pairs = ((reader, *row.split("=")) for reader, text in rows.items() for row in text.split())
    return tuple((field, reader, tuple(TAG[name] for name in names.split("|"))) for reader, field, names in pairs)


# What holds for a whole file.
_WHOLE_FILE = _table(
    text="patient_id=PatientID accession=AccessionNumber",
    word="study_uid=StudyInstanceUID series_uid=SeriesInstanceUID sop_uid=SOPInstanceUID study_date=StudyDate "
    "sop_class=SOPClassUID frame_of_reference=FrameOfReferenceUID photometric=PhotometricInterpretation",
    integer="series_number=SeriesNumber acquisition_number=AcquisitionNumber instance_number=InstanceNumber "
    "high_bit=HighBit signed=PixelRepresentation",
    count="rows=Rows columns=Columns bits_allocated=BitsAllocated bits_stored=BitsStored samples=SamplesPerPixel "
    "num_frames=NumberOfFrames",
)
# What each frame may have of its own.
_FRAME = _table(
    word="acquisition_time=AcquisitionTime rescale_type=RescaleType",
    number="thickness_mm=SliceThickness slice_step_mm=SpacingBetweenSlices tilt_deg=GantryDetectorTilt",
)
_ACQUISITION = _table(
    words="image_type=FrameType|ImageType scanning_sequence=ScanningSequence sequence_variant=SequenceVariant",
    word="modality=Modality sequence_name=SequenceName|PulseSequenceName acquisition_type=MRAcquisitionType "
    "body_part=BodyPartExamined kernel=ConvolutionKernel manufacturer=Manufacturer burnt_in=BurnedInAnnotation",
    text="description=SeriesDescription protocol=ProtocolName contrast_agent=ContrastBolusAgent",
    number="repetition_ms=RepetitionTime echo_ms=EchoTime|EffectiveEchoTime inversion_ms=InversionTime|InversionTimes "
    "flip_deg=FlipAngle trigger_ms=TriggerTime|NominalCardiacTriggerDelayTime kilovolts=KVP "
    "field_tesla=MagneticFieldStrength",
    integer="echo_number=EchoNumbers temporal_position=TemporalPositionIdentifier|TemporalPositionIndex",
)
# A frame's own groups never change whose image it is, nor how its pixels are stored.
_FIXED = frozenset(tag for _, _, tags in _WHOLE_FILE for tag in tags) | {TAG["SpecificCharacterSet"]}
_CHUNK = 128
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A whole file: its headers, one a frame, and the value of its pixel data as it stands there.

    Compressed pixel data are the stream of items, the basic offset table first, without the closing delimiter; others
    are a view of the file's bytes, not a copy.
    """

    headers: tuple[Header, ...]
    pixels: bytes | memoryview
    pixel_tag: int
    encapsulated: bool
    big_endian: bool
    transfer_syntax: str
    extended_offsets: bytes = b""
    extended_lengths: bytes = b""


def read_header(frame: Frame, limits: Limits | None = None) -> tuple[Header, ...]:
    """Headers of a file: one for a classic image or a mosaic, one a frame for a multi-frame image.

    Raises:
        Rejected: whatever is wrong: not readable, malformed, beyond a limit, no image (`not-an-image` with the kind;
            `structured-report` for a report), no identity, a value that places voxels and makes no sense.
    """
    limits = limits or Limits()
    return _guarded(lambda: _headers(read_elements(frame, limits), frame, limits))


def read_image(frame: Frame, limits: Limits | None = None) -> Image:
    """Headers and pixel data of a whole file.

    Raises:
        Rejected: as `read_header`, and `truncated-pixels`.
    """
    limits = limits or Limits()
    return _guarded(lambda: _image(read_elements(frame, limits, whole=True), frame, limits))


def read_headers(
    frames: Sequence[Frame], *, workers: int = 1, limits: Limits | None = None
) -> Iterator[tuple[Frame, tuple[Header, ...] | Rejected]]:
    """Yield every file with its headers, or with what is wrong with it; in order with one worker.

    With more, files are read in other processes; a file whose process dies is refused as `worker-died`.
    """
    limits = limits or Limits()
    if workers <= 1:
        for frame in frames:
            yield frame, _read_one(frame, limits)
        return
    chunks = [tuple(frames[start : start + _CHUNK]) for start in range(0, len(frames), _CHUNK)]
    alone: list[tuple[Frame, ...]] = []
    for chunk, results in each(partial(_read_chunk, limits=limits), chunks, workers=workers):
        if isinstance(results, WorkerDied):
            alone.extend((frame,) for frame in chunk)
        else:
            yield from zip(chunk, results, strict=True)
    for (frame,), results in each(partial(_read_chunk, limits=limits), alone, workers=workers):
        died = Rejected("worker-died", "the process that read this header crashed or was ended from outside")
        yield frame, died if isinstance(results, WorkerDied) else results[0]


def _read_chunk(frames: tuple[Frame, ...], *, limits: Limits) -> list[tuple[Header, ...] | Rejected]:
    return [_read_one(frame, limits) for frame in frames]


def _read_one(frame: Frame, limits: Limits) -> tuple[Header, ...] | Rejected:
    try:
        return read_header(frame, limits)
    except Rejected as error:
        return error


def _guarded(read: Callable[[], R]) -> R:
    try:
        return read()
    except MemoryError as error:
        raise Rejected("out-of-memory", "its header does not fit into the memory that is free") from error
    except (struct.error, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        if isinstance(error, Rejected):
            raise
        # The last net: no value in a file may end the run, whatever we did not think of.
        raise Rejected("malformed", f"its header makes no sense ({type(error).__name__})") from None


def _image(parsed: Parsed, frame: Frame, limits: Limits) -> Image:
    headers = _headers(parsed, frame, limits)
    assert parsed.pixel_at is not None, "headers are made of files with pixel data only"
    at, pixels = parsed.pixel_at, memoryview(parsed.content)
    if parsed.pixel_length is None:
        pixels = pixels[at : _end_of_items(parsed.content, at)]
    else:
        pixels = pixels[at : at + parsed.pixel_length]
    tables = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    offsets, lengths = (parsed.elements.get(TAG[name]) for name in tables)
    return Image(
        headers=headers,
        pixels=bytes(pixels) if parsed.pixel_length is None else pixels,
        pixel_tag=parsed.pixel_tag,
        encapsulated=parsed.pixel_length is None,
        big_endian=parsed.syntax == uid.ExplicitVRBigEndian,
        transfer_syntax=parsed.syntax,
        extended_offsets=offsets if isinstance(offsets, bytes) else b"",
        extended_lengths=lengths if isinstance(lengths, bytes) else b"",
    )


def _end_of_items(content: bytes, at: int) -> int:
    while at + 8 <= len(content):
        group, element, length = struct.unpack_from("<HHI", content, at)
        if group << 16 | element == SEQUENCE_END:
            return at
        if group << 16 | element != ITEM:
            raise Rejected("malformed", f"byte {at}: something else where compressed pixel data must go on")
        at += 8 + length
    raise Rejected("truncated-pixels", f"compressed pixel data have no end within {len(content)} bytes")


def _headers(parsed: Parsed, frame: Frame, limits: Limits) -> tuple[Header, ...]:
    top = parsed.elements
    _check_kind(top)
    if parsed.pixel_at is None:
        raise Rejected("no-pixels", "the file ends without pixel data")
    charsets = words(top, TAG["SpecificCharacterSet"])
    common = _filled(_WHOLE_FILE, top, charsets) | {"transfer_syntax": parsed.syntax, "names": people(top, charsets)}
    if common["signed"] not in ((0, 1) if parsed.pixel_tag == PIXEL_DATA else (0, 1, None)):
        raise Rejected("bad-value", "PixelRepresentation is neither 0 nor 1: whether pixels have a sign cannot be told")
    common["signed"] = common["signed"] == 1
    common["padding"] = _padding(top, signed=common["signed"])
    num_frames, per_frame = common["num_frames"], items(top, TAG["PerFrameFunctionalGroupsSequence"])
    if not per_frame and num_frames > 1:
        raise Rejected("frames-without-positions", f"{num_frames} frames in one image and no position for each")
    if per_frame and len(per_frame) != num_frames:
        raise Rejected("frame-count", f"the image says {num_frames} frames and describes {len(per_frame)}")
    shared = _overlaid(top, items(top, TAG["SharedFunctionalGroupsSequence"])[:1])
    frames = [_overlaid(shared, [group]) for group in per_frame] or [shared]
    headers = tuple(_header(common, item, replace(frame, frame=place), charsets) for place, item in enumerate(frames))
    _check_pixels(parsed, headers[0], limits)
    return headers


def _check_kind(top: Item) -> None:
    sop_class = word(top, TAG["SOPClassUID"])
    if sop_class in STRUCTURED_REPORTS:
        raise Rejected("structured-report", "a report, not an image")
    if sop_class and sop_class not in IMAGES:
        # A name from the standard's list; anything else might be anybody's text.
        name = uid.UID_dictionary.get(sop_class, ("of a class of its maker's own",))[0]
        raise Rejected("not-an-image", f"no CT, MR or PET image: {name}")
    if not sop_class and word(top, TAG["Modality"]) not in ("CT", "MR", "PT"):
        raise Rejected("not-an-image", "neither a SOP class nor a modality of CT, MR or PT")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not word(top, TAG[keyword]):
            raise Rejected("no-identity", f"{keyword} is absent: which study it belongs to cannot be told")


def _header(common: Mapping[str, Any], item: Item, where: Frame, charsets: tuple[str, ...]) -> Header:
    """Header of one frame: `item` is the data set with the frame's own groups laid over it."""
    if items(item, TAG["ModalityLUTSequence"]):
        raise Rejected("modality-lut", "stored values become real ones through a table, which is not supported")
    how = _filled(_ACQUISITION, item, charsets)
    how["burnt_in"] = {"YES": True, "NO": False}.get(how["burnt_in"].upper())
    how["contrast_agent"] = how["contrast_agent"] or ("given" if items(item, TAG["ContrastBolusAgentSequence"]) else "")
    acquisition = Acquisition(b_value=_b_value(item), **how)
    tiles, normal = _mosaic(item, acquisition)
    slope, intercept = exact(item, "RescaleSlope", 1), exact(item, "RescaleIntercept", 1)
    placed: dict[str, Any] = {
        "spacing_mm": exact(item, "PixelSpacing", 2),
        "position_mm": exact(item, "ImagePositionPatient", 3),
        "orientation": exact(item, "ImageOrientationPatient", 6),
        "slope": None if slope is None else slope[0],
        "intercept": None if intercept is None else intercept[0],
        "mosaic_tiles": tiles,
        "slice_normal": normal,
    }
    return Header(where=where, acquisition=acquisition, **common, **placed, **_filled(_FRAME, item, charsets))


def _filled(table: _Rows, item: Item, charsets: tuple[str, ...]) -> dict[str, Any]:
    return {field: _read(reader, item, tags, charsets) for field, reader, tags in table}


def _read(reader: str, item: Item, tags: tuple[int, ...], charsets: tuple[str, ...]) -> Any:
    tag = next((tag for tag in tags if item.get(tag)), tags[0])
    match reader:
        case "text":
            return free_text(item, tag, charsets)
        case "words":
            return words(item, tag)
        case "word":
            return word(item, tag)
        case "count":
            return _count(item, tag)
    found = number(item, tag)
    return int(found) if found is not None and reader == "integer" else found


def _overlaid(item: Item, groups: Sequence[Item]) -> Item:
    """`item` with the content of functional groups laid over it."""
    out = dict(item)
    for group in groups:
        for tag in _GROUPS:
            for inner in items(group, tag)[:1]:
                out.update((key, value) for key, value in inner.items() if key not in _FIXED)
                if tag == TAG["ContrastBolusAgentSequence"]:
                    out[tag] = [inner]
    return out


def _b_value(item: Item) -> float | None:
    standard = number(item, TAG["DiffusionBValue"])
    if standard is not None:
        return standard
    siemens = _first_number(private(item, "siemens-b"))
    if siemens is not None:
        return siemens
    makers = [_first_number(private(item, name)) for name in ("ge-b", "philips-b")]
    found = next((value for value in makers if value is not None and value >= 0), None)
    if found is None:
        return None
    # GE adds a billion to mark a value; both makers write 0 into images that have nothing to do with diffusion.
    found %= 1e9
    sequence = words(item, TAG["ScanningSequence"])
    spin_echo_epi = "EP" in sequence and "GR" not in sequence
    return found if spin_echo_epi and found <= 20_000 else None


def _first_number(value: object) -> float | None:
    if isinstance(value, bytes):
        return number({0: value}, 0)
    return float(value[0]) if isinstance(value, tuple) and value else None


def _mosaic(item: Item, acquisition: Acquisition) -> tuple[int | None, tuple[float, float, float] | None]:
    """Number of tiles and the direction in which they run, for a Siemens mosaic."""
    if "MOSAIC" not in acquisition.image_type:
        return None, None
    tiles = _first_number(private(item, "siemens-mosaic"))
    csa = _csa(private(item, "siemens-csa"))
    if tiles is None:
        tiles = next(iter(csa.get("NumberOfImagesInMosaic", ())), None)
    along = csa.get("SliceNormalVector", ())
    normal = (along[0], along[1], along[2]) if len(along) == 3 else None
    if tiles is None or tiles < 1 or tiles > 4096:
        raise Rejected("mosaic-without-count", "a mosaic that does not say how many slices it holds")
    return int(tiles), normal


def _csa(value: object) -> dict[str, tuple[float, ...]]:
    """Numbers of a Siemens CSA image header that a mosaic needs."""
    if not isinstance(value, bytes) or len(value) > MIB:
        return {}
    with warnings.catch_warnings():
        # nibabel warns on import that its DICOM readers are experimental; only its reader of this table is used.
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader
    try:
        tags = csareader.read(value)["tags"]
        names = ("NumberOfImagesInMosaic", "SliceNormalVector")
        return {name: tuple(float(part) for part in tags[name]["items"]) for name in names if name in tags}
    except (csareader.CSAError, struct.error, ValueError, LookupError, TypeError) as error:
        kind = type(error).__name__
        raise Rejected("bad-csa-header", f"a mosaic whose CSA header cannot be read ({kind})") from None


def _check_pixels(parsed: Parsed, header: Header, limits: Limits) -> None:
    assert parsed.pixel_at is not None, "checked before"
    if header.bits_allocated not in (8, 16, 32, 64) or not 1 <= header.bits_stored <= header.bits_allocated:
        raise Rejected("bad-value", f"{header.bits_stored} bits stored in {header.bits_allocated} allocated")
    pixels = header.rows * header.columns * header.samples * header.num_frames
    expected = pixels * header.bits_allocated // 8
    if expected > limits.max_file_bytes:
        raise Rejected("too-large", f"{expected} bytes of pixels, at most {limits.max_file_bytes} are read")
    if (parsed.syntax in NATIVE) != (parsed.pixel_length is not None):
        raise Rejected("malformed", "its transfer syntax and its pixel data disagree about compression")
    if parsed.pixel_length is not None:
        there = min(parsed.pixel_length, parsed.size - parsed.pixel_at)
        if there < max(expected, parsed.pixel_length):
            wanted = max(expected, parsed.pixel_length)
            raise Rejected("truncated-pixels", f"{there} bytes of pixel data, wanted {wanted}; copy the file again")


def _padding(top: Item, *, signed: bool) -> tuple[float, float] | None:
    found = [number(top, TAG[keyword]) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    # Read as unsigned where the file leaves the kind open.
    wrap = 1 << 16 if signed else 0
    values = [value - wrap if wrap and 1 << 15 <= value < wrap else value for value in found if value is not None]
    return (min(values), max(values)) if found[0] is not None else None


def _count(item: Item, tag: int) -> int:
    """A count that is at least one; samples and frames are one where nothing is said."""
    found = numbers(item, tag)
    if not item.get(tag) and tag in (TAG["SamplesPerPixel"], TAG["NumberOfFrames"]):
        return 1
    if not found or found[0] < 1 or found[0] != int(found[0]):
        name = next(name for name in TAG if TAG[name] == tag)
        raise Rejected("bad-value", f"{name} is absent or not a whole number above zero")
    return int(found[0])
