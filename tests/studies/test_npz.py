"""NumPy's zip files of arrays: read whole or refused with a reason, and never without a stated geometry."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tomoglot.studies.curate import examine
from tomoglot.studies.npz import read_npz
from tomoglot.studies.stated import read_series
from tomoglot.studies.study import Rejected, Series, Stated, Study

VOXELS = np.arange(4 * 3 * 2, dtype=np.int16).reshape(4, 3, 2)
GEOMETRY = Stated(spacing_mm=(1.0, 1.0, 1.0), orientation=(1, 0, 0, 0, 1, 0), position_mm=(0, 0, 0))


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def packed(path: Path, content: bytes, *, name: str = "ct.npy") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def as_npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (VOXELS, np.int16),
        (np.asfortranarray(VOXELS), np.int16),
        (VOXELS.astype(">i2"), np.int16),
        (VOXELS.astype(np.float16), np.float32),
        (VOXELS.astype(np.float64), np.float64),
    ],
)
def test_an_array_is_read_as_numpy_reads_it(tmp_path, stored, kind):
    path = save(tmp_path / "one.npz", ct=stored, other=np.zeros(3))
    read = read_npz(path, key="ct").voxels
    np.testing.assert_array_equal(read, np.load(path)["ct"])
    assert read.dtype == kind and read.dtype.isnative and read.flags.writeable


def test_what_is_no_volume_is_refused_with_a_reason_and_no_folder(tmp_path):
    whole = save(tmp_path / "whole.npz", ct=np.random.default_rng(0).integers(0, 999, (8, 8, 8))).read_bytes()
    cut = as_npy(VOXELS)
    huge = cut.replace(b"(4, 3, 2)", b"(4, 3, 9999999999)").replace(b" " * 9, b"", 1)
    holed = VOXELS.astype(float)
    holed[0, 0, 0] = np.nan
    made = {
        "no-such-array": save(tmp_path / "a.npz", other=VOXELS),
        "wrong-dimension": save(tmp_path / "b.npz", ct=VOXELS[0]),
        "wrong-dimension ": save(tmp_path / "b1.npz", ct=VOXELS[:, :1]),
        "wrong-dimension  ": save(tmp_path / "b2.npz", ct=np.int16(3)),
        "unsupported-type": save(tmp_path / "c.npz", ct=VOXELS.astype(complex)),
        "unsupported-type ": packed(tmp_path / "d.npz", as_npy(np.array([{"a": 1}], dtype=object))),
        "size-mismatch": packed(tmp_path / "e.npz", cut[:-3]),
        "size-mismatch ": packed(tmp_path / "f.npz", huge),
        "damaged-npz": packed(tmp_path / "g.npz", b"no array"),
        "non-finite-voxels": save(tmp_path / "h.npz", ct=holed),
        "constant-image": save(tmp_path / "i.npz", ct=np.zeros((3, 3, 3))),
        "absent": tmp_path / "nothing.npz",
        "not-a-file": tmp_path,
    }
    misnamed = packed(tmp_path / "k.npz", cut, name="é.npy").read_bytes().replace("é".encode(), b"\xff\xff")
    for number, content in enumerate((whole[: len(whole) // 2], b"PK\3\4", b"", b"\x80\x04pickle", misnamed)):
        made["damaged-npz" + " " * (number + 1)] = tmp_path / f"cut{number}.npz"
        (tmp_path / f"cut{number}.npz").write_bytes(content)
    for reason, path in made.items():
        with pytest.raises(Rejected) as refused:
            read_npz(path, key="ct")
        assert refused.value.reason == reason.strip(), path.name
        assert str(tmp_path) not in str(refused.value)
    with pytest.raises(Rejected, match="too-large"):
        read_npz(save(tmp_path / "j.npz", ct=VOXELS), key="ct", max_bytes=100)


def test_a_turned_bit_is_found_by_the_check_sum(tmp_path):
    path = packed(tmp_path / "one.npz", as_npy(VOXELS))  # stored, not deflated: only the sum can tell
    content = bytearray(path.read_bytes())
    content[content.index(VOXELS.tobytes()) + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(Rejected, match="damaged-npz"):
        read_npz(path, key="ct")


def test_any_damage_is_a_rejected_row_and_no_crash(tmp_path):
    whole, array = save(tmp_path / "whole.npz", ct=VOXELS).read_bytes(), as_npy(VOXELS)
    path, rng = tmp_path / "damaged.npz", np.random.default_rng(0)
    for number in range(400):
        content = bytearray((whole, array)[number % 2])
        for place in rng.integers(0, (len(whole), 80)[number % 2], 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content) if number % 2 == 0 else packed(path, bytes(content))
        found = examine(Study(subject="s", study="t", series=(Series(sequence="ct", path=path, stated=GEOMETRY),)))
        assert found.volumes or found.rejected[-1].reason == "no-usable-series"


@pytest.mark.parametrize(
    "stated", [None, Stated(spacing_mm=(1, 1, 1)), Stated(orientation=(1, 0, 0, 0, 1, 0), position_mm=(0, 0, 0))]
)
def test_without_a_stated_geometry_it_is_refused(tmp_path, stated):
    path = save(tmp_path / "one.npz", ct=VOXELS)
    with pytest.raises(Rejected, match=r"no-geometry: one\.npz.*convert it to NIfTI"):
        read_series(Series(sequence="ct", path=path, stated=stated))
