"""Any flipped bit is found, wherever it lies."""

import random
import shutil

import pytest
import zarr

from tomoglot.store import layout
from tomoglot.store.plan import Plan
from tomoglot.store.verify import verify
from tomoglot.store.writer import write_store
from tomoglot.studies.source import Sources


def test_a_whole_store_has_no_fault(store_path):
    calls = []
    assert verify(store_path, progress=lambda *done: calls.append(done)) == []
    assert calls == [(done, 5) for done in range(1, 6)]
    assert verify(store_path, workers=2) == []


@pytest.fixture(scope="module")
def copy(cohort, tmp_path_factory):
    target = tmp_path_factory.mktemp("copy") / "store"
    write_store(Sources(studies=cohort.studies[1:2], rejected=[]), target, Plan())
    return target


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_found_in_every_file(copy, seed):
    draw = random.Random(seed)
    for name in layout.files_under(copy):
        path = copy / name
        true = path.read_bytes()
        content = bytearray(true)
        # The first and the last byte, and others at random.
        place = {0: 0, 1: len(content) - 1}.get(seed, draw.randrange(len(content)))
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(content))
        try:
            found = verify(copy)
        finally:
            path.write_bytes(true)
        assert name in {fault.file for fault in found}, f"byte {place} of {name}"
    assert verify(copy) == []


def test_a_missing_a_foreign_and_a_left_over_file_are_found(store_path, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store_path, copy)
    first, second, third = sorted(path.name for path in (copy / "studies").iterdir())[:3]
    shutil.rmtree(copy / "studies" / first)
    (copy / "studies" / second / "volumes.zarr" / "zarr.json").unlink()
    (copy / "studies" / third / "note.txt").write_text("hello")
    (copy / "studies" / ".writing-0123456789abcdef-1").mkdir()
    (copy / "split.json").unlink()
    found = {fault.file: fault.what for fault in verify(copy)}
    assert found.pop(f"studies/{first}") == "missing"
    assert found.pop(f"studies/{second}/volumes.zarr/zarr.json") == "missing"
    assert "not a file that the writer made" in found.pop(f"studies/{third}/note.txt")
    assert "interrupted" in found.pop("studies/.writing-0123456789abcdef-1")
    assert found == {"split.json": "missing"}


def test_a_record_swapped_for_another_whole_one_is_found(store_path, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store_path, copy)
    first, second = sorted(path.name for path in (copy / "studies").iterdir())[:2]
    shutil.rmtree(copy / "studies" / first)
    shutil.copytree(copy / "studies" / second, copy / "studies" / first)
    assert [fault.file for fault in verify(copy)] == [f"studies/{first}/record.json"]


def test_voxels_changed_together_with_the_digest_of_their_file_are_found(store_path, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store_path, copy)
    folder = sorted((copy / "studies").iterdir())[0]
    voxels = zarr.open_array(folder / "volumes.zarr", mode="r+")
    voxels[0, 20, 20, 20] = voxels[0, 20, 20, 20] + 1
    record = layout.unseal((folder / "record.json").read_bytes(), "record.json")
    record["files"] = {name: layout.digest_file(folder / name) for name in record["files"]}
    (folder / "record.json").write_bytes(layout.seal(record))
    assert [fault.what for fault in verify(copy)] == ["decodes to other voxels than were written"]


def test_what_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a store"):
        verify(tmp_path)
