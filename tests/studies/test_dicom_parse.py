"""Headers: equal to pydicom's where a file is good, one refusal and a known cost where it is not."""

import time
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_mutants import PACKAGED, mutate, originals
from dicom_series import axis_affine, csa_header, marked_volume, save, uid, write_enhanced, write_mosaic, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
)

from tomoglot.studies.dicom import parse
from tomoglot.studies.dicom.files import Limits
from tomoglot.studies.dicom.parse import read_header, read_headers, read_image
from tomoglot.studies.dicom.values import quiet
from tomoglot.studies.pool import WorkerDied
from tomoglot.studies.study import Frame, Rejected

VOXELS, AFFINE = marked_volume((6, 5, 4)), axis_affine()


def one_slice(folder: Path, **options) -> Frame:
    return Frame(path=write_series(folder, VOXELS, AFFINE, **options)[0])


def header_of(folder: Path, **options):
    (header,) = read_header(one_slice(folder, **options))
    return header


def refusal(frame: Frame, limits: Limits | None = None) -> str:
    with pytest.raises(Rejected) as caught:
        read_header(frame, limits)
    return caught.value.reason


def plain(path: Path) -> pydicom.Dataset:
    with quiet():
        return pydicom.dcmread(path)


def floats(value) -> tuple[float, ...] | None:
    return None if value is None or value == "" else tuple(float(part) for part in np.atleast_1d(value))


def single(value) -> tuple[float, ...] | None:
    return None if value is None else (value,)


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.name)
def test_headers_and_pixel_bytes_equal_those_of_pydicom(path):
    try:
        image = read_image(Frame(path=path))
    except Rejected as error:
        assert error.reason in {
            *("not-an-image", "structured-report", "no-identity", "truncated-header", "truncated-pixels", "malformed"),
            *("frames-without-positions", "no-transfer-syntax", "no-pixels", "bad-value"),
        }
        return
    slow, header = plain(path), image.headers[0]
    assert bytes(image.pixels).rstrip(b"\0") == slow.PixelData.rstrip(b"\0")
    assert image.transfer_syntax == slow.file_meta.TransferSyntaxUID
    assert (header.rows, header.columns, header.samples) == (slow.Rows, slow.Columns, slow.SamplesPerPixel)
    assert (header.patient_id, header.study_uid) == (slow.get("PatientID") or "", slow.StudyInstanceUID)
    assert (header.sop_uid, header.series_uid) == (slow.SOPInstanceUID, slow.SeriesInstanceUID)
    assert header.position_mm == floats(slow.get("ImagePositionPatient"))
    assert header.orientation == floats(slow.get("ImageOrientationPatient"))
    assert header.spacing_mm == floats(slow.get("PixelSpacing"))
    assert single(header.slope) == floats(slow.get("RescaleSlope"))
    assert single(header.acquisition.echo_ms) == floats(slow.get("EchoTime"))
    assert header.acquisition.image_type == tuple(part.strip() for part in np.atleast_1d(slow.get("ImageType") or ()))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless]
)
def test_every_transfer_syntax_gives_the_same_header(tmp_path, syntax):
    expected, header = header_of(tmp_path / "a"), header_of(tmp_path / "b", transfer_syntax=syntax)
    assert header.transfer_syntax == syntax
    for name in ("rows", "position_mm", "orientation", "spacing_mm", "acquisition", "patient_id"):
        assert getattr(header, name) == getattr(expected, name)


def test_identity_and_people_are_read_in_any_declared_character_set(tmp_path):
    def edit(_k, dataset):
        dataset.SpecificCharacterSet = "ISO_IR 144"
        dataset.PatientID, dataset.PatientName = "П-17", "Иванов^Иван"

    header = header_of(tmp_path, edit=edit)
    assert header.patient_id == "П-17" and header.names == ("Иванов^Иван",)


def test_an_unknown_character_set_costs_letters_not_the_file(tmp_path):
    frame = one_slice(tmp_path, header={"PatientID": "Mueller", "SpecificCharacterSet": "ISO_IR 100"})
    content = frame.path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999").replace(b"Mueller", b"M\xfceller")
    frame.path.write_bytes(content)
    assert read_header(frame)[0].patient_id.endswith("eller")


def test_frames_of_an_enhanced_image_have_their_own_position_rescale_echo_and_b_value(tmp_path):
    volumes = np.stack([VOXELS, VOXELS * 2], axis=-1).astype(np.int32)
    slopes = [1.0, 2.0, 0.5, 1.0, 1.5, 1.0, 1.0, 3.0]
    path = write_enhanced(
        tmp_path / "e.dcm", volumes, AFFINE, slopes=slopes, b_values=[0, 1000], echoes_ms=[20.0, 90.0]
    )
    headers = read_header(Frame(path=path))
    assert [header.where.frame for header in headers] == list(range(8))
    assert [header.slope for header in headers] == slopes
    assert [header.acquisition.b_value for header in headers] == [0.0] * 4 + [1000.0] * 4
    assert [header.acquisition.echo_ms for header in headers] == [20.0] * 4 + [90.0] * 4
    heights = [header.position_mm[2] for header in headers]
    assert heights == [10.0, 12.0, 14.0, 16.0] * 2
    assert {header.orientation for header in headers} == {(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)}
    assert {header.spacing_mm for header in headers} == {(1.0, 1.0)} and headers[0].acquisition.repetition_ms == 500


def test_a_frame_cannot_change_whose_image_it_is(tmp_path):
    def edit(dataset):
        dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].PatientID = "somebody else"
        dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].Rows = 1

    headers = read_header(Frame(path=write_enhanced(tmp_path / "e.dcm", VOXELS, AFFINE, edit=edit)))
    assert {(header.patient_id, header.rows) for header in headers} == {("P1", 5)}


def test_a_multi_frame_image_that_describes_other_frames_than_it_has_is_refused(tmp_path):
    def lose_one(dataset):
        del dataset.PerFrameFunctionalGroupsSequence[-1]

    def lose_all(dataset):
        del dataset.PerFrameFunctionalGroupsSequence

    assert refusal(Frame(path=write_enhanced(tmp_path / "a.dcm", VOXELS, AFFINE, edit=lose_one))) == "frame-count"
    lost = write_enhanced(tmp_path / "b.dcm", VOXELS, AFFINE, edit=lose_all)
    assert refusal(Frame(path=lost)) == "frames-without-positions"


def test_a_mosaic_tells_its_tiles_and_the_way_they_run(tmp_path):
    (header,) = read_header(Frame(path=write_mosaic(tmp_path / "m.dcm", VOXELS, AFFINE)))
    assert (header.mosaic_tiles, header.rows, header.columns) == (4, 10, 12)
    assert header.slice_normal == (0.0, 0.0, 1.0) and header.slice_step_mm == 2.0


def test_a_mosaic_without_its_count_or_with_a_broken_table_is_refused(tmp_path):
    def no_count(dataset):
        del dataset[0x0019100A]
        dataset[0x00291010].value = csa_header({"Other": ("US", [1])})

    def broken(dataset):
        dataset[0x00291010].value = dataset[0x00291010].value[:70]

    assert (
        refusal(Frame(path=write_mosaic(tmp_path / "a.dcm", VOXELS, AFFINE, edit=no_count))) == "mosaic-without-count"
    )
    assert refusal(Frame(path=write_mosaic(tmp_path / "b.dcm", VOXELS, AFFINE, edit=broken))) == "bad-csa-header"


MAKERS = {
    "siemens": (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "1000", 1000.0),
    "ge": (0x0043, "GEMS_PARM_01", 0x39, "IS", [1000000800, 8, 0, 0], 800.0),
    "philips": (0x2001, "Philips Imaging DD 001", 0x03, "FL", 700.0, 700.0),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian])
def test_b_values_in_the_makers_own_elements_are_read(tmp_path, maker, syntax):
    group, creator, element, vr, value, expected = MAKERS[maker]

    def edit(_k, dataset):
        dataset.ScanningSequence = ["EP", "SE"]
        # The second block of the group: the first belongs to somebody else.
        dataset.private_block(group, "SOMEBODY ELSE", create=True).add_new(element, "LO", "7")
        dataset.private_block(group, creator, create=True).add_new(element, vr, value)

    assert header_of(tmp_path, edit=edit, transfer_syntax=syntax).acquisition.b_value == expected


def test_the_zero_that_a_maker_writes_into_every_image_is_no_b_value(tmp_path):
    def edit(_k, dataset):
        dataset.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", 0.0)

    assert header_of(tmp_path, edit=edit).acquisition.b_value is None


def test_padding_of_signed_pixels_is_signed(tmp_path):
    header = header_of(tmp_path, signed=True, header={"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990})
    assert header.signed and header.padding == (-2000, -1990)
    implicit = header_of(tmp_path / "i", signed=True, padding=-2000, transfer_syntax=ImplicitVRLittleEndian)
    assert implicit.padding == (-2000, -2000)


@pytest.mark.parametrize(
    ("keyword", "value", "changed"),
    [
        ("RescaleSlope", "12345.5", b"12a45.5"),
        ("PixelSpacing", ["1.23", "4.5678"], b"1.23\\nan   "),
        ("ImagePositionPatient", ["-12345", "1", "2"], b"-12345\\1_2"),
    ],
)
def test_a_value_that_places_or_scales_voxels_and_makes_no_sense_is_refused(tmp_path, keyword, value, changed):
    frame = one_slice(tmp_path, header={keyword: value})
    content = frame.path.read_bytes()
    written = value.encode() if isinstance(value, str) else "\\".join(value).encode()
    assert content.count(written) == 1 and len(written) == len(changed)
    frame.path.write_bytes(content.replace(written, changed))
    assert refusal(frame) == "bad-value"


def test_a_modality_lut_is_refused(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    assert refusal(one_slice(tmp_path, header={"ModalityLUTSequence": Items([table])})) == "modality-lut"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"SOPClassUID": SegmentationStorage}, "not-an-image"),
        ({"SOPClassUID": BasicTextSRStorage}, "structured-report"),
        ({"StudyInstanceUID": None}, "no-identity"),
        ({"Rows": 0}, "bad-value"),
        ({"BitsStored": 17}, "bad-value"),
        ({"Rows": 500}, "truncated-pixels"),
        ({"PixelData": None}, "no-pixels"),
        ({"PixelRepresentation": 2}, "bad-value"),
        ({"PixelRepresentation": None}, "bad-value"),
    ],
)
def test_what_is_no_good_image_is_refused_with_the_reason(tmp_path, header, reason):
    frame = one_slice(tmp_path, header=header)
    with pytest.raises(Rejected) as caught:
        read_header(frame)
    assert caught.value.reason == reason


def test_a_class_that_is_no_image_is_called_by_its_name_in_the_standard_or_not_at_all(tmp_path):
    frame = one_slice(tmp_path, header={"SOPClassUID": SegmentationStorage})
    with pytest.raises(Rejected, match="Segmentation Storage"):
        read_header(frame)
    content = frame.path.read_bytes()
    frame.path.write_bytes(
        content.replace(SegmentationStorage.encode(), b"Secret^Name".ljust(len(SegmentationStorage)))
    )
    with pytest.raises(Rejected, match="maker's own") as caught:
        read_header(frame)
    assert "Secret" not in str(caught.value)


CUT = {"truncated-header", "truncated-pixels", "no-pixels", "no-transfer-syntax", "no-identity", "not-an-image"}


def test_a_file_cut_anywhere_is_refused_and_never_read_half(tmp_path):
    frame = one_slice(tmp_path)
    content = frame.path.read_bytes()
    for length in range(132, len(content), 7):
        frame.path.write_bytes(content[:length])
        assert refusal(frame) in CUT


def test_an_element_that_stands_twice_with_two_values_is_refused(tmp_path):
    frame = one_slice(tmp_path, header={"PatientID": "ABCD"})
    element = b"\x10\0\x20\0LO\x04\0"
    content = frame.path.read_bytes()
    frame.path.write_bytes(content.replace(element + b"ABCD", element + b"ABCD" + element + b"EFGH"))
    assert refusal(frame) == "duplicate-element"


def nested(levels: int, *, closed: bool = True) -> bytes:
    begin = b"\x40\0\x30\xa7SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return begin * levels + (end * levels if closed else b"")


def with_bytes(frame: Frame, more: bytes) -> Frame:
    """The same file with bytes before its pixel data."""
    content = frame.path.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\0OW")
    frame.path.write_bytes(content[:at] + more + content[at:])
    return frame


def test_deep_nesting_and_a_million_elements_cost_little_and_are_refused(tmp_path):
    assert len(read_header(with_bytes(one_slice(tmp_path / "a"), nested(10)))) == 1
    begun = time.process_time()
    assert refusal(with_bytes(one_slice(tmp_path / "b"), nested(100_000))) == "nested-too-deep"
    assert refusal(with_bytes(one_slice(tmp_path / "c"), nested(12, closed=False))) in {"malformed", "truncated-header"}
    empty = b"\x40\0\x31\xa7LO\0\0" * 300_000
    limits = Limits(max_elements=250_000)
    assert refusal(with_bytes(one_slice(tmp_path / "d"), empty), limits) == "too-many-elements"
    assert refusal(one_slice(tmp_path / "e"), Limits(max_header_bytes=200)) == "header-too-large"
    assert time.process_time() - begun < 5


def test_a_length_of_four_gigabytes_takes_no_memory(tmp_path):
    huge = b"\x40\0\x31\xa7UT\0\0\xf0\xff\xff\xff"
    assert refusal(with_bytes(one_slice(tmp_path), huge)) == "truncated-header"


def test_a_header_longer_than_the_first_read_is_read_on(tmp_path):
    private = b"\x41\0\x31\xa7OB\0\0" + (300_000).to_bytes(4, "little") + bytes(300_000)
    assert len(read_header(with_bytes(one_slice(tmp_path), private))) == 1


def test_a_deflate_bomb_is_refused_before_it_fills_the_memory(tmp_path):
    frame = one_slice(tmp_path, transfer_syntax=DeflatedExplicitVRLittleEndian)
    content = frame.path.read_bytes()
    start = content.index(b"1.2.840.10008.1.2.1.99")
    meta = content[: content.index(b"\x02\0\x12\0", start)]
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = engine.compress(bytes(64 << 20)) + engine.flush()
    frame.path.write_bytes(meta + bomb)
    assert refusal(frame, Limits(max_header_bytes=1 << 20)) == "deflate-bomb"
    frame.path.write_bytes(content[:-30])
    assert refusal(frame) in {"bad-deflate", "truncated-pixels"}


def test_a_slow_header_is_given_up(tmp_path, monkeypatch):
    frame = with_bytes(one_slice(tmp_path), b"\x40\0\x31\xa7LO\0\0" * 9000)
    assert refusal(frame, Limits(seconds_per_file=-1.0)) == "too-slow"


def test_whatever_is_thrown_inside_becomes_a_refusal(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise IndexError("secret")

    monkeypatch.setattr(parse, "_headers", fail)
    with pytest.raises(Rejected, match="IndexError") as caught:
        read_header(one_slice(tmp_path))
    assert "secret" not in str(caught.value)


def test_many_files_are_read_in_this_process_or_in_others_with_the_same_result(tmp_path):
    frames = [Frame(path=path) for path in write_series(tmp_path, VOXELS, AFFINE)]
    (tmp_path / "bad.dcm").write_bytes(frames[0].path.read_bytes()[:400])
    frames.insert(2, Frame(path=tmp_path / "bad.dcm"))
    here = list(read_headers(frames))
    assert [frame for frame, _ in here] == frames
    assert [isinstance(result, Rejected) for _, result in here] == [False, False, True, False, False]
    elsewhere = dict(read_headers(frames, workers=2))
    assert elsewhere.keys() == set(frames)
    assert all(repr(elsewhere[frame]) == repr(result) for frame, result in here)


def test_a_file_whose_process_dies_is_refused_and_those_beside_it_are_read(tmp_path, monkeypatch):
    frames = [Frame(path=path) for path in write_series(tmp_path, VOXELS, AFFINE)]

    def dies_at_the_second(work, jobs, *, workers):
        for job in jobs:
            yield job, WorkerDied() if frames[1] in job else work(job)

    monkeypatch.setattr(parse, "each", dies_at_the_second)
    results = dict(read_headers(frames, workers=2))
    assert results[frames[1]].reason == "worker-died"
    assert all(len(results[frame]) == 1 for frame in (frames[0], *frames[2:]))


def test_mutants_of_packaged_files_give_headers_or_refusals_and_nothing_else(tmp_path):
    files = originals(most_bytes=200_000)
    path = tmp_path / "mutant.dcm"
    refused = 0
    for number in range(150):
        path.write_bytes(mutate(files, seed=number))
        begun = time.perf_counter()
        try:
            read_header(Frame(path=path))
        except Rejected:
            refused += 1
        assert time.perf_counter() - begun < 10
    assert 30 < refused < 150


def test_a_mutant_that_is_taken_says_what_pydicom_reads_in_it(tmp_path):
    small = [path.read_bytes() for path in PACKAGED if path.name.startswith(("CT_small", "MR_small"))]
    path, taken = tmp_path / "mutant.dcm", 0
    for number in range(300):
        path.write_bytes(mutate(small, seed=70_000 + number))
        try:
            header = read_image(Frame(path=path)).headers[0]
            slow = plain(path)
        except (Rejected, NotImplementedError):
            continue
        taken += 1
        with quiet():
            assert (header.rows, header.columns) == (slow.Rows, slow.Columns)
            assert (header.study_uid, header.signed) == (slow.StudyInstanceUID, slow.PixelRepresentation == 1)
            assert header.position_mm == floats(slow.get("ImagePositionPatient"))
            assert header.orientation == floats(slow.get("ImageOrientationPatient"))
            assert header.spacing_mm == floats(slow.get("PixelSpacing"))
            assert single(header.slope) == floats(slow.get("RescaleSlope"))
    assert taken > 30


def test_the_same_words_give_the_same_uid_and_files_are_readable_by_pydicom(tmp_path):
    assert uid("a", 1) == uid("a", 1) != uid("a", 2)
    dataset = plain(write_series(tmp_path, VOXELS, AFFINE)[1])
    np.testing.assert_array_equal(dataset.pixel_array, VOXELS[:, :, 1].T)
    save(dataset, tmp_path / "copy.dcm")
    assert plain(tmp_path / "copy.dcm").SOPInstanceUID == dataset.SOPInstanceUID
