"""Finding files: folders, zip files, DICOMDIRs; what is not DICOM, what is hostile, what would hang."""

import io
import os
import stat
import zipfile
from collections import Counter
from pathlib import Path

import pydicom.data
import pytest
from dicom_series import axis_affine, marked_volume, write_series

from tomoglot.studies.dicom.files import Limits, find_files, looks_like_dicom, open_file, read_start
from tomoglot.studies.dicom.parse import read_header
from tomoglot.studies.dicom.read import matches
from tomoglot.studies.study import Frame, Rejected

VOXELS, AFFINE = marked_volume((6, 5, 4)), axis_affine()


def reasons(found) -> Counter:
    return Counter(one.error.reason for one in found.rejected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "in" / "a" / "b", VOXELS, AFFINE)
    return tmp_path / "in"


def zipped(path: Path, members: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def a_slice(folder: Path) -> bytes:
    return next(folder.rglob("*.dcm")).read_bytes()


def test_nested_folders_are_searched_and_file_names_do_not_matter(folder):
    one = next(folder.rglob("*.dcm"))
    one.rename(one.with_name("IM 17 without a suffix"))
    found = find_files(folder)
    assert len(found.frames) == 4 and not found.rejected
    assert matches(folder)


def test_plainly_other_files_are_counted_by_suffix_and_odd_ones_are_listed_each(folder):
    for name in ("notes.txt", "more.txt", "page.HTML"):
        (folder / name).write_text("text")
    (folder / "broken.dcm").write_bytes(b"not dicom at all" * 20)
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "IM0007").write_bytes(b"\0" * 500)
    found = find_files(folder)
    assert reasons(found) == {"not-dicom": 4, "empty-file": 1}
    texts = [one.error.evidence for one in found.rejected if one.where.path == folder]
    assert texts == [
        "1 files ending in '.html' are not DICOM: left alone",
        "2 files ending in '.txt' are not DICOM: left alone",
    ]


def test_a_folder_without_dicom_does_not_match(tmp_path):
    (tmp_path / "sub-01_T1w.nii.gz").write_bytes(b"\x1f\x8b" + b"\0" * 300)
    (tmp_path / "data.bin").write_bytes(b"\0" * 300)
    assert not matches(tmp_path)


def test_links_that_form_a_loop_do_not_hang_and_count_once(folder):
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "a")
    (folder / "nowhere.dcm").symlink_to(folder / "absent.dcm")
    found = find_files(folder)
    assert len(found.frames) == 4
    assert reasons(found) == {"unreadable": 1}


def test_a_pipe_is_not_opened(folder):
    os.mkfifo(folder / "pipe.dcm")
    assert reasons(find_files(folder)) == {"not-a-file": 1}


def test_a_zip_file_is_read_in_place_alone_and_inside_a_folder(folder, tmp_path):
    files = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.dcm"))}
    archive = zipped(tmp_path / "export.zip", files, compression=zipfile.ZIP_DEFLATED)
    found = find_files(archive)
    assert [frame.member for frame in found.frames] == sorted(files) and not found.rejected
    assert matches(archive)
    assert open_file(found.frames[0]).read() == files[found.frames[0].member]
    plain = Frame(path=next(folder.rglob("im0000.dcm")))
    assert read_header(found.frames[0])[0].position_mm == read_header(plain)[0].position_mm
    archive.rename(folder / "export.zip")
    assert len(find_files(folder).frames) == 8


def test_hostile_members_of_a_zip_file_are_refused_and_the_others_read(folder, tmp_path):
    good = a_slice(folder)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("im.dcm", good)
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.dcm", good)
        archive.writestr("../../outside.dcm", good)
        archive.writestr("/etc/outside.dcm", good)
        archive.writestr("C:\\outside.dcm", good)
        archive.writestr("inner.zip", inner.getvalue())
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.dcm", bytes(17 << 20))
    found = find_files(path)
    assert [frame.member for frame in found.frames] == ["good.dcm"]
    assert reasons(found) == {"zip-traversal": 3, "nested-zip": 1, "zip-link": 1, "zip-bomb": 1}


def test_an_encrypted_member_is_refused(folder, tmp_path):
    path = zipped(tmp_path / "export.zip", {"im.dcm": a_slice(folder)})
    content = bytearray(path.read_bytes())
    # The flags of the member, in its own header and in the directory.
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(bytes(content))
    assert reasons(find_files(path)) == {"encrypted": 1}


def test_of_two_members_of_one_name_none_is_read(folder, tmp_path):
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("im.dcm", a_slice(folder))
        archive.writestr("im.dcm", b"something else")
    found = find_files(path)
    assert not found.frames and reasons(found) == {"duplicate-member": 1}


def test_too_many_members_or_bytes_refuse_the_whole_zip_file(folder, tmp_path):
    path = zipped(tmp_path / "export.zip", {f"{n}.dcm": a_slice(folder) for n in range(3)})
    assert reasons(find_files(path, Limits(max_zip_members=2))) == {"zip-too-large": 1}
    assert reasons(find_files(path, Limits(max_zip_bytes=1000))) == {"zip-too-large": 1}


def test_a_zip_file_whose_directory_would_fill_the_memory_is_refused_before_it_is_read(folder, tmp_path, monkeypatch):
    path = zipped(tmp_path / "export.zip", {f"{n}.dcm": b"" for n in range(3)})
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert reasons(find_files(path, Limits(max_zip_directory_bytes=100))) == {"zip-too-large": 1}
    # The form for more than 65,535 members: its true length stands in another record.
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    record = b"PK\6\6" + (44).to_bytes(8, "little") + bytes(28) + (1 << 40).to_bytes(8, "little") + bytes(8)
    locator = b"PK\6\7" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little")
    path.write_bytes(content[:end] + record + locator + content[end:])
    assert reasons(find_files(path)) == {"zip-too-large": 1}


def test_a_damaged_zip_file_is_refused_and_a_damaged_member_when_it_is_read(folder, tmp_path):
    path = zipped(tmp_path / "export.zip", {"im.dcm": a_slice(folder)}, compression=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    assert reasons(find_files(tmp_path / "cut.zip")) == {"bad-zip": 1}
    frame = find_files(path).frames[0]
    changed = bytearray(content)
    changed[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(changed))
    os.utime(path, ns=(1, 1))
    with pytest.raises(Rejected, match="bad-zip"):
        open_file(frame)


def test_a_dicomdir_gives_the_files_it_lists_and_tells_of_those_that_are_gone(tmp_path):
    listing = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests" / "DICOMDIR"
    found = find_files(listing)
    there = [path for path in listing.parent.rglob("*") if path.is_file() and looks_like_dicom(path.read_bytes()[:132])]
    assert 0 < len(found.frames) <= len(there)
    assert {frame.path.suffix for frame in found.frames} == {""}
    lower = tmp_path / "lower"
    for frame in found.frames:
        copy = lower / str(frame.path.relative_to(listing.parent)).lower()
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(frame.path.read_bytes())
    (lower / "DICOMDIR").write_bytes(listing.read_bytes())
    assert len(find_files(lower / "DICOMDIR").frames) == len(found.frames)
    assert not find_files(lower).rejected
    tmp_path = tmp_path / "gone"
    tmp_path.mkdir()
    (tmp_path / "DICOMDIR").write_bytes(listing.read_bytes())
    gone = find_files(tmp_path)
    assert not gone.frames and reasons(gone) == {"listed-file-missing": 1}
    assert str(len(found.frames)) in gone.rejected[0].error.evidence


def test_files_beyond_the_limit_are_refused(folder):
    frame = find_files(folder).frames[0]
    with pytest.raises(Rejected, match="too-large"):
        read_start(frame, 100, Limits(max_file_bytes=100))
    with pytest.raises(ValueError, match="more than 2 files"):
        find_files(folder, Limits(max_files=2))


def test_a_source_that_is_not_there_is_said_to_be_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_files(tmp_path / "nothing")
