import itertools
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import axis_affine, marked_volume, uid, write_enhanced, write_mosaic, write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoglot.geometry import to_ras
from tomoglot.studies.dicom import decoder
from tomoglot.studies.dicom.parse import read_headers
from tomoglot.studies.dicom.pixels import read_volume
from tomoglot.studies.dicom.volumes import group
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.study import Frame, Rejected, Volume

pydicom = pytest.importorskip("pydicom", reason="pip install 'tomoglot[dicom]'")

TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def frames_of(paths) -> list[Frame]:
    return [Frame(path=path) for path in paths]


def plans_of(paths):
    headers = []
    for _, found in read_headers(frames_of(paths)):
        assert not isinstance(found, Rejected), found
        headers += found
    grouped = group(headers)
    assert not grouped.refused, [str(error) for _, error in grouped.refused]
    return grouped.volumes


def refused(paths, reason: str) -> str:
    with pytest.raises(Rejected) as caught:
        read_volume(frames_of(paths))
    assert caught.value.reason == reason, str(caught.value)
    assert not any(path.name in str(caught.value) for path in paths), "a raw file's name may identify"
    return caught.value.evidence


def same(volume: Volume, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Equal in every voxel once both lie in RAS+ order."""
    ours, theirs = to_ras(volume.voxels, volume.affine), to_ras(voxels, affine)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_every_turn_of_a_volume_reads_the_same_from_dicom_and_from_nifti(tmp_path, order, flips):
    wanted, canonical = marked_volume((5, 6, 4)), axis_affine(spacing_mm=(1.0, 1.25, 2.0))
    # The same anatomy, stored along other axes: turn `voxels` and say so in the affine.
    turn = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    voxels = nibabel.orientations.apply_orientation(wanted, turn)
    affine = canonical @ nibabel.orientations.inv_ornt_aff(turn, wanted.shape)
    paths = write_series(tmp_path / "raw", voxels, affine, shuffle=3)
    write_nifti(tmp_path / "a.nii", Volume(voxels=voxels, affine=affine))
    for volume in (read_volume(frames_of(paths)), read_nifti(tmp_path / "a.nii")):
        ras, ras_affine = to_ras(volume.voxels, volume.affine)
        np.testing.assert_array_equal(ras, wanted)
        np.testing.assert_allclose(ras_affine, canonical, atol=1e-4)


def test_file_names_and_the_order_of_frames_change_nothing(tmp_path):
    voxels, affine = marked_volume(), axis_affine()
    plain = read_volume(frames_of(write_series(tmp_path / "a", voxels, affine)))
    mixed = read_volume(frames_of(sorted(write_series(tmp_path / "b", voxels, affine, shuffle=1))))
    np.testing.assert_array_equal(plain.voxels, mixed.voxels)
    np.testing.assert_array_equal(plain.affine, mixed.affine)


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path):
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)

    def edit(k, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + k, -3

    volume = read_volume(frames_of(write_series(tmp_path, voxels, axis_affine(), edit=edit)))
    ras, _ = to_ras(voxels * (0.5 + np.arange(4)) - 3, axis_affine())
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(to_ras(volume.voxels, volume.affine)[0], ras)


def test_whole_slopes_keep_whole_numbers_of_a_type_that_holds_all_that_the_bits_can_say(tmp_path):
    voxels = marked_volume((4, 4, 4)).astype(np.int64)

    def typed(name, values, **how):
        volume = read_volume(frames_of(write_series(tmp_path / name, values, axis_affine(), **how)))
        same(volume, values, axis_affine())
        return volume.voxels.dtype

    assert typed("a", voxels - 1024, modality="CT", intercept=-1024, bits_stored=12) == np.int16
    assert typed("b", voxels - 1024, modality="CT", intercept=-1024) == np.int32
    assert typed("c", voxels) == np.uint16
    assert typed("d", voxels - 70, signed=True) == np.int16
    assert typed("e", voxels * 1000, slope=1000, intercept=0) == np.int32
    assert typed("f", voxels * 60000, slope=60000, intercept=0) == np.uint32
    assert typed("g", 65535 - voxels, slope=-1, intercept=65535) == np.uint16


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.integers(2, 16),
    st.integers(0, 14),
    st.booleans(),
    st.sampled_from([1, -1, 3, 0.37, -2.5]),
    st.integers(-5000, 5000),
)
def test_real_values_are_their_definition(tmp_path_factory, bits, above, signed, slope, intercept):
    high = min(15, bits - 1 + above)
    raw = np.random.default_rng(bits).integers(0, 1 << 16, (2, 3, 4), dtype=np.uint16)

    def edit(k, dataset):
        dataset.PixelData = np.ascontiguousarray(raw[:, :, k].T).tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, high, int(signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept

    def real(container: int) -> float:
        value = (container >> (high + 1 - bits)) % (1 << bits)
        return (value - (1 << bits) * (signed and value >= 1 << (bits - 1))) * slope + intercept

    paths = write_series(tmp_path_factory.mktemp("raw"), raw.astype(np.int64), axis_affine(), edit=edit)
    volume = read_volume(frames_of(paths))
    wanted = np.vectorize(real, otypes=[np.float64])(raw.astype(np.int64))
    np.testing.assert_allclose(volume.voxels, wanted, rtol=1e-6, atol=0.0 if slope == int(slope) else 1e-2)


def test_twelve_signed_bits_are_read_whatever_lies_above_them(tmp_path):
    voxels = marked_volume((4, 4, 4)) - 150

    def edit(k, dataset):
        stored = np.frombuffer(dataset.PixelData, np.uint16)
        dataset.PixelData = ((stored & 0x0FFF) | 0xA000).tobytes()

    paths = write_series(tmp_path, voxels, axis_affine(), signed=True, bits_stored=12, edit=edit)
    same(read_volume(frames_of(paths)), voxels, axis_affine())


def test_bits_that_begin_above_the_lowest_are_shifted_down(tmp_path):
    voxels = marked_volume((4, 4, 4))

    def edit(k, dataset):
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) << 4 | 0x0005).tobytes()
        dataset.HighBit = 15

    same(
        read_volume(frames_of(write_series(tmp_path, voxels, axis_affine(), bits_stored=12, edit=edit))),
        voxels,
        axis_affine(),
    )


@pytest.mark.parametrize("bits_stored", [16, 12])
def test_padding_of_ct_becomes_air_even_where_it_lies_beyond_the_bits_stored(tmp_path, bits_stored):
    hounsfield = marked_volume((4, 5, 3))
    hounsfield[0, :2] = -2000
    paths = write_series(
        tmp_path, hounsfield, axis_affine(), modality="CT", signed=True, bits_stored=bits_stored, padding=-2000
    )
    wanted = np.where(hounsfield == -2000, -1024, hounsfield)
    same(read_volume(frames_of(paths)), wanted, axis_affine())


def test_padding_that_could_be_tissue_is_refused_in_ct_and_nought_in_mr(tmp_path):
    values = marked_volume((4, 5, 3))
    values[0, :2] = 0
    ct = write_series(tmp_path / "ct", values, axis_affine(), modality="CT", padding=0)
    assert "0 to 0 HU" in refused(ct, "padding-within-tissue")
    values = values * 2 + 8
    values[0, :2] = 8008
    mr = write_series(tmp_path / "mr", values, axis_affine(), padding=4000, slope=2, intercept=8)
    same(read_volume(frames_of(mr)), np.where(values == 8008, 0, values), axis_affine())


def test_padding_is_a_range_where_a_limit_is_given(tmp_path):
    hounsfield = marked_volume((4, 5, 3)) - 1000
    hounsfield[0, :2], hounsfield[1, :2] = -3000, -2500
    header = {"PixelPaddingRangeLimit": -2000 + 4000}
    paths = write_series(
        tmp_path, hounsfield, axis_affine(), modality="CT", intercept=-4000, padding=1000, header=header
    )
    same(read_volume(frames_of(paths)), np.where(hounsfield <= -2000, -1024, hounsfield), axis_affine())


@pytest.mark.parametrize("step", [3.0, -3.0])
def test_a_mosaic_is_cut_into_its_slices_whichever_way_they_run(tmp_path, step):
    voxels, affine = marked_volume((6, 5, 7)), axis_affine(spacing_mm=(1.0, 1.5, 3.0))
    affine[2, 2] = step
    path = write_mosaic(tmp_path / "m.dcm", voxels, affine)
    same(read_volume([Frame(path=path)]), voxels, affine)


def test_frames_of_one_file_are_read_in_any_order_with_their_own_slopes(tmp_path):
    voxels, affine = marked_volume((6, 5, 4)) * 6, axis_affine(order=(1, 2, 0))
    path = write_enhanced(tmp_path / "e.dcm", voxels, affine, order=[2, 0, 3, 1], slopes=[1, 2, 3, 6])
    (plan,) = plans_of([path])
    same(read_volume(plan.frames), voxels, affine)


def test_volumes_of_one_file_are_read_apart(tmp_path):
    first, affine = marked_volume((6, 5, 4)), axis_affine()
    both = np.stack([first, first[::-1]], axis=3)
    path = write_enhanced(tmp_path / "e.dcm", both, affine, b_values=[0, 1000])
    plans = plans_of([path])
    assert [plan.part for plan in plans] == ["b0", "b1000"]
    for place, plan in enumerate(plans):
        same(read_volume(plan.frames), both[..., place], affine)
    with pytest.raises(Rejected, match="several-volumes"):
        read_volume([frame for plan in plans for frame in plan.frames])


def test_a_leaning_stack_is_resampled_only_on_request(tmp_path):
    i, j, k = np.indices((12, 14, 8))
    affine = axis_affine(spacing_mm=(1.0, 1.0, 2.0))
    affine[1, 2] = 0.5
    x, y, z = np.moveaxis(nibabel.affines.apply_affine(affine, np.stack([i, j, k], -1)), -1, 0)
    field = np.round(3 * x + 5 * y + 7 * z).astype(np.int16) + 500
    paths = write_series(tmp_path, field, affine)
    assert "14.0 degrees" in refused(paths, "gantry-tilt")
    volume = read_volume(frames_of(paths), resample_tilt=True)
    directions = volume.affine[:3, :3] / volume.grid.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    assert volume.voxels.shape == (12, 14 + 4, 8)
    # A linear field is what trilinear reading gives back, up to the rounding of what was stored.
    places = np.stack(np.indices(volume.voxels.shape), -1)
    x, y, z = np.moveaxis(nibabel.affines.apply_affine(volume.affine, places), -1, 0)
    inside = volume.voxels > 0
    assert inside.mean() > 0.7
    assert np.abs(volume.voxels - (3 * x + 5 * y + 7 * z + 500))[inside].max() < 1.0


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_floating_point_pixels_are_read(tmp_path, kind):
    values = marked_volume((4, 5, 3)) / 8

    def edit(k, dataset):
        rows = np.ascontiguousarray(values[:, :, k].T).astype(kind).tobytes()
        del dataset.PixelData
        dataset.BitsAllocated = dataset.BitsStored = int(kind[1]) * 8
        setattr(dataset, "FloatPixelData" if kind == "f4" else "DoubleFloatPixelData", rows)

    volume = read_volume(frames_of(write_series(tmp_path, marked_volume((4, 5, 3)), axis_affine(), edit=edit)))
    assert volume.voxels.dtype == np.float32
    same(volume, values, axis_affine())


def test_a_file_that_went_missing_or_a_slice_left_out_refuses_the_volume(tmp_path):
    paths = write_series(tmp_path, marked_volume(), axis_affine())
    refused(paths[:3] + paths[4:], "missing-slice")
    paths[2].unlink()
    with pytest.raises(Rejected):
        read_volume(frames_of(paths))


@pytest.mark.parametrize("slope", ["1e300", "1e38", "-1e300"])
def test_a_slope_that_no_float_holds_is_refused(tmp_path, slope):
    paths = write_series(
        tmp_path, marked_volume(), axis_affine(), header={"RescaleSlope": slope, "RescaleIntercept": 0}
    )
    assert "beyond float32" in refused(paths, "bad-scaling")


def test_nothing_but_one_value_is_no_image(tmp_path):
    refused(write_series(tmp_path, np.full((4, 5, 3), 7, np.int16), axis_affine()), "constant-image")


def test_short_pixels_and_surplus_ones_are_refused_and_zeros_behind_them_are_not(tmp_path):
    def cut(k, dataset):
        if k == 1:
            dataset.PixelData = dataset.PixelData[:-4]

    def grow(tail):
        def edit(k, dataset):
            dataset.PixelData += tail

        return edit

    voxels = marked_volume((4, 5, 3))
    refused(write_series(tmp_path / "a", voxels, axis_affine(), edit=cut), "truncated-pixels")
    refused(write_series(tmp_path / "b", voxels, axis_affine(), edit=grow(b"\0\1" * 9)), "surplus-pixels")
    padded = write_series(tmp_path / "c", voxels, axis_affine(), edit=grow(b"\0" * 99 + b"\0"))
    same(read_volume(frames_of(padded)), voxels, axis_affine())


@pytest.mark.parametrize("syntax", [pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes_read_the_same(tmp_path, syntax):
    voxels = marked_volume() - 200
    paths = write_series(tmp_path, voxels, axis_affine(), signed=True, transfer_syntax=syntax)
    same(read_volume(frames_of(paths)), voxels, axis_affine())


@pytest.mark.parametrize("syntax", [pydicom.uid.RLELossless, pydicom.uid.JPEGLSLossless])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_syntaxes_read_the_same(tmp_path, syntax, signed):
    pytest.importorskip("jpeg_ls", reason="pyjpegls is not installed")
    voxels = marked_volume() - 200 * signed
    paths = write_series(tmp_path, voxels, axis_affine(), signed=signed, transfer_syntax=syntax)
    same(read_volume(frames_of(paths)), voxels, axis_affine())


@pytest.mark.parametrize(
    ("kind", "bits"), [("JPEGLosslessProcess14_1", 16), ("JPEG2000Lossless", 16), ("JPEGLosslessProcess14", 12)]
)
def test_what_gdcm_compresses_reads_the_same(tmp_path, kind, bits):
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    voxels = marked_volume((16, 20, 3))
    paths = write_series(tmp_path, voxels, axis_affine(), bits_stored=bits)
    for path in paths:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID.is_compressed
    same(read_volume(frames_of(paths)), voxels, axis_affine())


PACKAGED = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "693_J2KI.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "image_dfl.dcm",
]


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_of_every_codec_read_as_pydicom_reads_them(tmp_path, name):
    source = packaged(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(source)
        stored = dataset.pixel_array
        paths = two_slices(dataset, tmp_path)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    volume = read_volume(frames_of(paths))
    wanted = stored * slope + intercept
    if "PixelPaddingValue" in dataset and dataset.Modality == "CT":
        wanted = np.where(stored == dataset.PixelPaddingValue, -1024, wanted)
    for k in range(2):
        np.testing.assert_array_equal(volume.voxels[:, :, k].T, wanted)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_twelve_bit_extended_jpeg_is_refused_not_guessed(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = two_slices(pydicom.dcmread(packaged(name)), tmp_path)
    assert "2.4.51" in refused(paths, "decoder-failed")


def packaged(name: str) -> str:
    import pydicom.data

    # Only what the wheel holds: other names would be fetched.
    folder = Path(pydicom.data.__file__).parent / "test_files"
    if not (folder / name).is_file():
        pytest.skip(f"this pydicom does not ship {name}")
    return str(folder / name)


def two_slices(dataset, folder: Path) -> list[Path]:
    """One packaged slice twice, 2 mm apart, as a series of our own: pixels and their description stay as they are."""
    paths = []
    for k in range(2):
        dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "P", uid("s"), uid("e")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("i", k)
        dataset.SOPClassUID = pydicom.uid.MRImageStorage
        dataset.Modality = "CT" if dataset.get("Modality") == "CT" else "MR"
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.FrameOfReferenceUID, dataset.ImageType = [1, 1], uid("f"), ["ORIGINAL", "PRIMARY"]
        dataset.SpacingBetweenSlices = dataset.GantryDetectorTilt = None
        dataset.NumberOfFrames = 1
        paths.append(folder / f"{k}.dcm")
        dataset.save_as(paths[-1])
    return paths


def jpeg_ls(tmp_path) -> list[Path]:
    pytest.importorskip("jpeg_ls", reason="pyjpegls is not installed")
    return write_series(tmp_path, marked_volume(), axis_affine(), transfer_syntax=pydicom.uid.JPEGLSLossless)


def test_a_damaged_frame_is_refused_and_the_next_series_is_read(tmp_path):
    paths = jpeg_ls(tmp_path)
    content = bytearray(paths[3].read_bytes())
    start = content.index(b"\xff\xd8")
    content[start + 30 : start + 60] = os.urandom(30)
    paths[3].write_bytes(content)
    refused(paths, "decoder-failed")
    read_volume(frames_of(jpeg_ls(tmp_path / "again")))


@pytest.mark.parametrize(("deadly", "words"), [(None, "no answer within 1 s"), (signal.SIGSEGV, "crashed")])
def test_a_decoder_that_hangs_or_crashes_costs_one_refusal(tmp_path, monkeypatch, deadly, words):
    frames = frames_of(jpeg_ls(tmp_path))
    read_volume(frames)
    child = decoder._CHILD._process
    os.kill(child.pid, signal.SIGSTOP)
    if deadly:

        def crash():
            os.kill(child.pid, deadly)
            os.kill(child.pid, signal.SIGCONT)

        threading.Timer(0.2, crash).start()
    from tomoglot.studies.dicom.files import Limits

    began = time.monotonic()
    with pytest.raises(Rejected, match=words) as caught:
        read_volume(frames, limits=Limits(seconds_per_file=1))
    assert caught.value.reason == "decoder-failed"
    assert time.monotonic() - began < 60, "the child would never answer"
    read_volume(frames)
    assert decoder._CHILD._process.pid != child.pid


def test_one_child_serves_many_series(tmp_path):
    frames = frames_of(jpeg_ls(tmp_path))
    read_volume(frames)
    pid = decoder._CHILD._process.pid
    read_volume(frames)
    assert decoder._CHILD._process.pid == pid


def test_a_codestream_that_claims_to_be_huge_takes_no_memory_of_ours(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = two_slices(pydicom.dcmread(packaged("MR_small_jp2klossless.dcm")), tmp_path)
    content = bytearray(paths[0].read_bytes())
    size = content.index(b"\xff\x51") + 6
    for at in (size, size + 16):  # image and tile size, width and height
        content[at : at + 8] = struct.pack(">2I", 60_000, 60_000)
    paths[0].write_bytes(content)
    refused(paths, "decoder-failed")


def test_a_fork_does_not_share_its_parents_child(tmp_path):
    frames = frames_of(jpeg_ls(tmp_path))
    wanted = read_volume(frames).voxels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        pid = os.fork()
    if pid == 0:
        good = decoder._CHILD._process is None and np.array_equal(read_volume(frames).voxels, wanted)
        decoder._CHILD.close()
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(read_volume(frames).voxels, wanted)


# ---- the second opinion: dcm2niix, and volumes that another converter made


def dcm2niix(folder: Path, out: Path) -> list[nibabel.Nifti1Image]:
    program = shutil.which("dcm2niix")
    if program is None:
        pytest.skip("dcm2niix is not installed")
    out.mkdir()
    subprocess.run([program, "-b", "n", "-z", "n", "-f", "%s_%p", "-o", out, folder], check=True, capture_output=True)
    return [nibabel.load(path) for path in sorted(out.glob("*.nii"))]


def agree(volume: Volume, image: nibabel.Nifti1Image, place: int = 0) -> None:
    values = np.asarray(image.dataobj)
    ours, theirs = (
        to_ras(volume.voxels, volume.affine),
        to_ras(values.reshape(*values.shape[:3], -1)[..., place], image.affine),
    )
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)
    if volume.voxels.dtype.kind == "f":
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    else:
        np.testing.assert_array_equal(ours[0], theirs[0])


def oblique(order) -> np.ndarray:
    turn = nibabel.eulerangles.euler2mat(0.2, -0.1, 0.15)
    affine = axis_affine(order=order, spacing_mm=(0.8, 1.1, 3.3))
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0)])
@pytest.mark.parametrize(("modality", "slope"), [("MR", None), ("CT", 1.0), ("MR", 0.37)])
def test_dcm2niix_gives_the_same_volume(tmp_path, order, modality, slope):
    voxels = marked_volume() * (slope or 1)
    paths = write_series(
        tmp_path / "raw",
        voxels,
        oblique(order),
        modality=modality,
        slope=slope,
        intercept=-50.0 if slope else None,
        shuffle=2,
    )
    (image,) = dcm2niix(tmp_path / "raw", tmp_path / "out")
    agree(read_volume(frames_of(paths)), image)


@pytest.mark.parametrize("kind", ["enhanced", "mosaic", "mosaic whose tiles run down"])
def test_dcm2niix_gives_the_same_volume_of_one_file(tmp_path, kind):
    voxels, affine = marked_volume((16, 20, 9)), axis_affine(order=(0, 2, 1), spacing_mm=(1.0, 1.5, 3.0))
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "a.dcm"
    if kind == "enhanced":
        write_enhanced(path, voxels * 2, affine, order=np.random.default_rng(0).permutation(9), slopes=[2] * 9)
    else:
        affine[:, 2] *= -1 if "down" in kind else 1
        write_mosaic(path, voxels, affine)
    (image,) = dcm2niix(tmp_path / "raw", tmp_path / "out")
    (plan,) = plans_of([path])
    agree(read_volume(plan.frames), image)


def test_dcm2niix_gives_the_same_real_t1(shared, tmp_path):
    folder = shared / "data" / "dicom_t1" / "dicoms"
    if not folder.is_dir():
        pytest.skip("the real T1 series is not there")
    # A part of its 384 slices, for time; the whole was compared once, with the same result.
    part = tmp_path / "part"
    part.mkdir()
    for path in sorted(folder.glob("*.dcm"))[160:200]:
        (part / path.name).symlink_to(path)
    (plan,) = plans_of(sorted(part.iterdir()))
    (image,) = dcm2niix(part, tmp_path / "out")
    agree(read_volume(plan.frames), image)


SERIES = [f"20180918{vendor}/mr_000{n}" for vendor, numbers in (("GE", "4567"), ("Si", "3456")) for n in numbers]


@pytest.mark.parametrize("series", SERIES)
def test_real_series_of_two_vendors_agree_with_another_converter_and_with_dcm2niix(shared, tmp_path, series):
    data = shared / "data" / "dicom_two_vendors"
    if not data.is_dir():
        pytest.skip("the series of two vendors are not there")
    folder = data / "In" / series
    plans = plans_of(sorted(folder.glob("*.dcm")))
    kind = "DCM2NIIX*" if "GE" in series else "EPI*"
    (reference,) = (data / "Ref").glob(f"{kind}_{series[-1]}.nii")
    images = [nibabel.load(reference)]
    assert len(plans) == images[0].shape[3], "ten time points of GE, two mosaics of Siemens"
    if shutil.which("dcm2niix"):
        images += dcm2niix(folder, tmp_path / "out")
    for place in {0, 1, len(plans) - 1}:
        volume = read_volume(plans[place].frames)
        for image in images:
            agree(volume, image, place)
