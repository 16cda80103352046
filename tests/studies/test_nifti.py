"""Strict reading of NIfTI: every kind of broken file has its reason, and good ones come back as they were."""

import gzip
import pickle
import struct
import zlib

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.study import Rejected, Volume

AFFINE = np.array([[-1.0, 0, 0, 10], [0, 2.0, 0, -20], [0, 0, 3.0, 30], [0, 0, 0, 1]])


def voxels(kind="int16"):
    return np.random.default_rng(0).integers(0, 100, (6, 7, 8)).astype(kind)


def plain_bytes(values=None, affine=AFFINE):
    return nibabel.Nifti1Image(voxels() if values is None else values, affine).to_bytes()


def changed(offset, form, *values):
    """A good file whose header has other bytes at `offset`."""
    data = bytearray(plain_bytes())
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


def with_nan():
    values = voxels("float32")
    values[1, 2, 3] = np.nan
    return values


# name of the case -> (reason, bytes of the file, its suffix)
BROKEN = {
    "empty": ("empty-file", b"", ".nii"),
    "text": ("not-nifti", b"this is a letter, not an image" * 30, ".nii"),
    "text under gzip": ("not-nifti", gzip.compress(b"this is a letter" * 60), ".nii.gz"),
    "voxels elsewhere": ("not-nifti", changed(344, "4s", b"ni1\0"), ".nii"),
    "voxels before the header's end": ("not-nifti", changed(108, "<f", 10.0), ".nii"),
    "voxels nowhere": ("not-nifti", changed(108, "<f", np.nan), ".nii"),
    "gzip cut": ("truncated", gzip.compress(plain_bytes())[:-30], ".nii.gz"),
    "gzip cut within its check sum": ("truncated", gzip.compress(plain_bytes())[:-3], ".nii.gz"),
    "gzip cut within the header": ("truncated", gzip.compress(plain_bytes())[:40], ".nii.gz"),
    "wrong check sum": ("damaged-gzip", gzip.compress(plain_bytes())[:-8] + b"\1\2\3\4" + b"\0\0\0\0", ".nii.gz"),
    "something after gzip": ("damaged-gzip", gzip.compress(plain_bytes()) + b"more", ".nii.gz"),
    "plain cut": ("truncated", plain_bytes()[:-5], ".nii"),
    "voxels cut before packing": ("truncated", gzip.compress(plain_bytes()[:-5]), ".nii.gz"),
    "much after the voxels": ("size-mismatch", plain_bytes() + bytes(2000), ".nii"),
    "much after the voxels, packed": ("size-mismatch", gzip.compress(plain_bytes() + bytes(2000)), ".nii.gz"),
    "absurd size": ("too-large", changed(40, "<4h", 3, 32767, 32767, 32767), ".nii"),
    "absurd size, packed": ("too-large", gzip.compress(changed(40, "<4h", 3, 32767, 32767, 32767)), ".nii.gz"),
    "size beyond what can be packed": ("truncated", gzip.compress(changed(40, "<4h", 3, 1000, 1000, 1000)), ".nii.gz"),
    "two axes": ("wrong-dimension", plain_bytes(voxels()[:, :, 0]), ".nii"),
    "one slice": ("wrong-dimension", plain_bytes(voxels()[:, :, :1]), ".nii"),
    "five frames": ("wrong-dimension", plain_bytes(np.stack([voxels()] * 5, axis=-1)), ".nii"),
    "ninety axes": ("wrong-dimension", changed(40, "<h", 90), ".nii"),
    "negative axis": ("wrong-dimension", changed(42, "<h", -6), ".nii"),
    "complex": ("unsupported-type", plain_bytes(voxels("complex64")), ".nii"),
    "colour": ("unsupported-type", changed(70, "<h", 128), ".nii"),
    "unknown type": ("unsupported-type", changed(70, "<h", 999), ".nii"),
    "infinite intercept": ("bad-scaling", changed(112, "<2f", 2.0, np.inf), ".nii"),
    "scaling out of range": ("bad-scaling", changed(112, "<2f", 3e38, 0.0), ".nii"),
    "no orientation": ("unknown-orientation", changed(252, "<2h", 0, 0), ".nii"),
    "NaN in the affine": ("bad-affine", changed(280, "<f", np.nan), ".nii"),
    "an axis of the affine is zero": ("bad-affine", changed(280, "<f", 0.0), ".nii"),
    "two axes of the affine are one": ("bad-affine", changed(280, "<8f", 1, 1, 0, 0, 1, 1, 0, 0), ".nii"),
    "zero spacing": ("bad-spacing", changed(80, "<f", 0.0), ".nii"),
    "negative spacing": ("bad-spacing", changed(84, "<f", -2.0), ".nii"),
    "NaN spacing": ("bad-spacing", changed(84, "<f", np.nan), ".nii"),
    "metres for millimetres": ("bad-spacing", plain_bytes(affine=np.diag([1e-3, 1e-3, 1e-3, 1])), ".nii"),
    "voxels of a metre": ("bad-spacing", plain_bytes(affine=np.diag([1e3, 1e3, 1e3, 1])), ".nii"),
    "NaN voxel": ("non-finite-voxels", plain_bytes(with_nan()), ".nii"),
    "constant": ("constant-image", plain_bytes(np.full((4, 4, 4), 7, np.int16)), ".nii"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_reason_and_no_folder(case, tmp_path):
    reason, data, suffix = BROKEN[case]
    path = tmp_path / f"image{suffix}"
    path.write_bytes(data)
    with pytest.raises(Rejected) as caught:
        read_nifti(path)
    assert caught.value.reason == reason
    assert "image" in caught.value.evidence
    assert str(tmp_path) not in str(caught.value)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(Rejected, match=r"^absent: here\.nii"):
        read_nifti(tmp_path / "here.nii")
    with pytest.raises(Rejected, match=r"^not-a-file"):
        read_nifti(tmp_path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(changed(40, "<4h", 3, 1000, 1000, 500) + bytes(20_000_000)))
    with pytest.raises(Rejected, match="too-large"):
        read_nifti(path, max_bytes=10_000_000)


def test_an_absurd_size_costs_no_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "lie.nii.gz"
    path.write_bytes(gzip.compress(changed(40, "<4h", 3, 1000, 1000, 500)))
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match="truncated"):
            read_nifti(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_written_comes_back_the_same(kind, name, tmp_path):
    write_nifti(tmp_path / name, Volume(voxels=voxels(kind), affine=AFFINE))
    read = read_nifti(tmp_path / name)
    assert read.voxels.dtype == np.dtype(kind)
    np.testing.assert_array_equal(read.voxels, voxels(kind))
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / name).dataobj), voxels(kind))


def test_the_same_volume_is_the_same_file_and_nothing_is_left_beside_it(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, Volume(voxels=voxels(), affine=AFFINE), description="simulated")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    write_nifti(path, Volume(voxels=voxels(), affine=AFFINE))
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_nifti(path, Volume(voxels=voxels() + 1, affine=AFFINE))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize("kind", ["int64", "uint64", "complex64"])
def test_a_type_that_readers_do_not_share_is_not_written(kind, tmp_path):
    with pytest.raises(ValueError, match=kind):
        write_nifti(tmp_path / "a.nii", Volume(voxels=voxels(kind), affine=AFFINE))


def test_scaling_is_applied_and_a_scaling_of_one_keeps_integers(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(changed(112, "<2f", 0.5, -3.0))
    np.testing.assert_allclose(read_nifti(path).voxels, voxels() * 0.5 - 3.0)
    for slope in (1.0, 0.0, np.nan):
        path.write_bytes(changed(112, "<2f", slope, 0.0))
        assert read_nifti(path).voxels.dtype == np.int16


def test_one_frame_is_a_volume_and_so_are_big_endian_and_nifti_2(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(plain_bytes(voxels()[..., None]))
    np.testing.assert_array_equal(read_nifti(path).voxels, voxels())
    big = nibabel.Nifti1Image(voxels(), AFFINE, nibabel.Nifti1Header(endianness=">"))
    path.write_bytes(big.to_bytes())
    assert path.read_bytes()[:2] == b"\0\0"
    read = read_nifti(path).voxels
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, voxels())
    path.write_bytes(nibabel.Nifti2Image(voxels(), AFFINE).to_bytes())
    np.testing.assert_array_equal(read_nifti(path).voxels, voxels())


def test_the_content_decides_whether_a_file_is_gzip(tmp_path):
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain_bytes()))
    (tmp_path / "plain.nii.gz").write_bytes(plain_bytes())
    for name in ("packed.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(read_nifti(tmp_path / name).voxels, voxels())


def test_gzip_in_members_and_with_zero_padding_is_read(tmp_path):
    data = plain_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]) + bytes(512))
    np.testing.assert_array_equal(read_nifti(path).voxels, voxels())


def test_an_empty_mask_may_be_constant(tmp_path):
    write_nifti(tmp_path / "mask.nii.gz", Volume(voxels=np.zeros((4, 4, 4), np.uint8), affine=AFFINE))
    assert not read_nifti(tmp_path / "mask.nii.gz", allow_constant=True).voxels.any()


def test_a_refusal_crosses_a_process_whole():
    again = pickle.loads(pickle.dumps(Rejected("truncated", "a.nii: 3 bytes")))
    assert (again.reason, again.evidence) == ("truncated", "a.nii: 3 bytes")


PACKED = zlib.compressobj(6, wbits=31)
PACKED = PACKED.compress(plain_bytes()) + PACKED.flush()


@given(bit=st.integers(0, 8 * len(PACKED) - 1))
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_flipped_bit_is_refused_or_harmless(bit, tmp_path):
    data = bytearray(PACKED)
    data[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "flipped.nii.gz"
    path.write_bytes(data)
    try:
        read = read_nifti(path)
    except Rejected:
        return
    np.testing.assert_array_equal(read.voxels, voxels())
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-6)


def test_the_bits_that_may_flip_unseen_are_all_in_the_gzip_header(tmp_path):
    path = tmp_path / "flipped.nii.gz"
    for byte in [*range(10, 40), *range(len(PACKED) - 40, len(PACKED))]:
        data = bytearray(PACKED)
        data[byte] ^= 1 << byte % 8
        path.write_bytes(data)
        with pytest.raises(Rejected):
            read_nifti(path)
