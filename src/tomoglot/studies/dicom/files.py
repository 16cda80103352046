"""Find DICOM files in folders, zip files and DICOMDIRs, and open them: nothing is extracted, everything is bounded.

Only regular files are opened (a pipe would never answer), folders reached twice are read once (links may form loops),
and a zip file is believed only as far as its directory is plausible.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tomoglot.studies.study import Frame, Rejected

GIB = 1 << 30
MIB = 1 << 20
# What DICOM exports carry beside images. Anything else that is not DICOM is listed by itself.
_SUFFIXES = (
    ".txt .json .xml .csv .tsv .md .html .htm .css .js .pdf .doc .docx .xls .xlsx .rtf .log .ini .inf .exe .dll"
    " .bat .sh .py .m .mat .jpg .jpeg .png .gif .bmp .tif .tiff .ico .svg .mp4 .avi .nii .gz .bval .bvec .ds_store .db"
    " .lnk .yml .yaml .jar .class .sha256 .md5 .app .plist .tar .7z"
)
SOMETHING_ELSE = frozenset((*_SUFFIXES.split(), "license", "readme", "changes", "copying", "thumbs", "autorun"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one source, one file and one header may cost."""

    max_files: int = 5_000_000
    max_file_bytes: int = 4 * GIB
    max_header_bytes: int = 64 * MIB
    max_elements: int = 2_000_000
    max_depth: int = 16
    seconds_per_file: float = 10.0
    max_zip_members: int = 500_000
    # A directory is read whole: one of 64 MiB may hold 1.4 million empty entries, which take 1 GB.
    max_zip_directory_bytes: int = 64 * MIB
    max_zip_bytes: int = 1024 * GIB
    # A blank slice may well compress 1000 times, so the ratio counts for large members only.
    max_zip_ratio: float = 200.0
    free_ratio_bytes: int = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedFile:
    """A file that was not taken, and why."""

    where: Frame
    error: Rejected


@dataclass(slots=True, kw_only=True)
class Found:
    """Files that begin like DICOM, in the order of their names, and what was refused."""

    frames: list[Frame] = field(default_factory=list)
    rejected: list[RefusedFile] = field(default_factory=list)


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first bytes of a file are DICOM's: the preamble and its mark, or (old files) a first element."""
    if start[128:132] == b"DICM":
        return True
    group, element, length = start[:2], start[2:4], start[4:8]
    if group not in (b"\x02\0", b"\x08\0") or len(start) < 16:
        return False
    # Without the mark: element numbers of a data set's first lines, and a VR or a small length after them.
    explicit = length[:2].isalpha() and length[:2].isupper()
    return element in (b"\0\0", b"\1\0", b"\5\0", b"\x08\0", b"\x16\0") and (explicit or length[2:] == b"\0\0")


def find_files(source: Path, limits: Limits | None = None) -> Found:
    """Find every file below `source` that begins like DICOM: a folder, a zip file, a DICOMDIR or one file.

    Files that are plainly something else (by suffix) are counted in one refusal a suffix (`not-dicom`); every other
    file that is not DICOM is refused by itself. Zip files inside folders are looked into; zip files inside those are
    not. What a DICOMDIR lists and is not there is refused (`listed-file-missing`).

    Raises:
        ValueError: `source` does not exist, or holds more files than `limits.max_files`.
    """
    if not source.exists():
        raise ValueError(f"{source.name!r} does not exist; give a folder, a zip file or a DICOMDIR")
    found, others = Found(), Counter[str]()
    for one in _look(source, limits or Limits()):
        if isinstance(one, Frame):
            found.frames.append(one)
        elif isinstance(one, RefusedFile):
            found.rejected.append(one)
        else:
            others[one] += 1
    for suffix, count in sorted(others.items()):
        error = Rejected("not-dicom", f"{count} files ending in {suffix!r} are not DICOM: left alone")
        found.rejected.append(RefusedFile(where=Frame(path=source), error=error))
    return found


def holds_dicom(source: Path, *, most: int) -> bool:
    """Whether one of the first `most` files below `source` begins like DICOM; zip files are looked into."""
    return any(isinstance(one, Frame) for one in islice(_look(source, Limits()), most))


def _look(source: Path, limits: Limits) -> Iterator[Frame | RefusedFile | str]:
    """Files that begin like DICOM, files that are refused, and the suffixes of those that are something else."""
    for count, path in enumerate(_walk(source) if source.is_dir() else [source]):
        if count >= limits.max_files:
            raise ValueError(f"{source.name!r} holds more than {limits.max_files} files; give its parts one by one")
        yield from _look_at(Frame(path=path), limits, alone=path == source)


def _look_at(where: Frame, limits: Limits, *, alone: bool = False) -> Iterator[Frame | RefusedFile | str]:
    name = PurePosixPath(where.member or where.path.name).name.lower()
    suffix = PurePosixPath(name).suffix or name
    try:
        start, size = read_start(where, 132, limits)
        if start[:4] in (b"PK\3\4", b"PK\5\6"):
            yield from _look_into_zip(where, limits)
        elif name == "dicomdir":
            yield from _check_list(where, limits, take=alone)
        elif looks_like_dicom(start):
            yield where
        elif suffix in SOMETHING_ELSE:
            yield suffix
        elif size == 0:
            raise Rejected("empty-file", "0 bytes")
        else:
            raise Rejected("not-dicom", f"{size} bytes that do not begin like DICOM (no DICM at byte 128)")
    except Rejected as error:
        yield RefusedFile(where=where, error=error)


def _look_into_zip(where: Frame, limits: Limits) -> Iterator[Frame | RefusedFile | str]:
    if where.member:
        raise Rejected("nested-zip", "a zip file inside a zip file is not opened; unpack the outer one")
    members = [info for info in _archive_of(where.path, limits).infolist() if not info.is_dir()]
    total = sum(info.file_size for info in members)
    if len(members) > limits.max_zip_members or total > limits.max_zip_bytes:
        raise Rejected(
            "zip-too-large",
            f"{len(members)} members of {total} bytes together; at most {limits.max_zip_members} and "
            f"{limits.max_zip_bytes} are read. If the file is trusted, unpack it and give the folder",
        )
    copies = Counter(info.filename for info in members)
    for name, count in sorted(copies.items()):
        member = replace(where, member=name)
        if count == 1:
            yield from _look_at(member, limits)
        else:
            error = Rejected("duplicate-member", f"{count} members have this name; only one of them could be read")
            yield RefusedFile(where=member, error=error)


def _check_list(where: Frame, limits: Limits, *, take: bool) -> Iterator[Frame | RefusedFile | str]:
    """Compare a DICOMDIR with what is there; `take` the files it lists, or leave that to the walk of the folder."""
    from tomoglot.studies.dicom.elements import read_elements
    from tomoglot.studies.dicom.values import TAG, items, words

    if where.member:
        return
    folder = where.path.parent
    # Media are often mounted or copied with their names in lower case.
    there = {file.relative_to(folder).as_posix().lower(): file for file in _walk(folder)}
    missing = 0
    for record in items(read_elements(where, limits).elements, TAG["DirectoryRecordSequence"]):
        parts = words(record, TAG["ReferencedFileID"])
        # Only what the walk of the folder met is ever opened: an entry cannot lead out of it.
        listed = there.get("/".join(parts).lower())
        missing += bool(parts) and listed is None
        if take and listed is not None and parts:
            yield from _look_at(Frame(path=listed), limits)
    if missing:
        found = f"{missing} files listed by a DICOMDIR are not in its folder; copy the whole medium again"
        raise Rejected("listed-file-missing", found)


def open_file(frame: Frame, limits: Limits | None = None) -> BinaryIO:
    """Open the file, or the zip member, that holds `frame`; a member is read whole first, so that its CRC is checked.

    Raises:
        Rejected: `unreadable`, `not-a-file`, `too-large`, `bad-zip`.
    """
    limits = limits or Limits()
    if frame.member:
        return io.BytesIO(read_start(frame, limits.max_file_bytes, limits)[0])
    _regular_size(frame.path, limits)
    try:
        return frame.path.open("rb")
    except OSError as error:
        raise _unreadable(error) from error


def read_start(frame: Frame, most: int, limits: Limits) -> tuple[bytes, int]:
    """First bytes of a file or member, at most `most`, and its whole size.

    Raises:
        Rejected: as `open_file`.
    """
    try:
        if frame.member:
            archive, info = _member(frame, limits)
            with archive.open(info) as opened:
                return opened.read(most), info.file_size
        size = _regular_size(frame.path, limits)
        with frame.path.open("rb") as file:
            return file.read(min(most, size)), size
    except OSError as error:
        raise _unreadable(error) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, Rejected):
            raise
        raise Rejected("bad-zip", f"a member cannot be read ({type(error).__name__}); pack it again") from error


def _regular_size(path: Path, limits: Limits) -> int:
    try:
        state = path.stat()
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(state.st_mode):
        raise Rejected("not-a-file", "a pipe, socket or device: opening it might wait for ever")
    if state.st_size > limits.max_file_bytes:
        raise Rejected("too-large", f"{state.st_size} bytes, at most {limits.max_file_bytes} are read")
    return state.st_size


def _unreadable(error: OSError) -> Rejected:
    return Rejected("unreadable", f"{error.strerror or type(error).__name__}; check its permissions and the disk")


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in name order; a folder that links lead to twice is read once."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            state = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            # Handed on as a path, it is refused like a file that cannot be read.
            yield here
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append(Path(entry.path))
            else:
                yield Path(entry.path)
        waiting.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _check_member(info: zipfile.ZipInfo, limits: Limits) -> None:
    parts = PurePosixPath(info.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise Rejected("zip-traversal", "a member's name leads out of the zip file")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise Rejected("zip-link", "a member is a symbolic link; links in zip files are not followed")
    if info.flag_bits & 1:
        raise Rejected("encrypted", "a member is encrypted; decrypt the zip file first")
    if info.file_size > limits.max_file_bytes:
        raise Rejected("too-large", f"{info.file_size} bytes, at most {limits.max_file_bytes} are read")
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > limits.free_ratio_bytes and ratio > limits.max_zip_ratio:
        raise Rejected(
            "zip-bomb", f"{info.file_size} bytes out of {info.compress_size}: more than 1 to {limits.max_zip_ratio:g}"
        )


def _archive_of(path: Path, limits: Limits) -> zipfile.ZipFile:
    try:
        state = path.stat()
        _check_directory(path, state.st_size, limits)
        return _archive(path, state.st_size, state.st_mtime_ns)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        if isinstance(error, Rejected):
            raise
        raise Rejected("bad-zip", f"its directory cannot be read ({type(error).__name__}); pack it again") from error


def _check_directory(path: Path, size: int, limits: Limits) -> None:
    """Refuse a zip file whose directory alone would fill the memory, found as `zipfile` finds it."""
    with path.open("rb") as file:
        file.seek(max(0, size - 65_557))
        tail = file.read()
        at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
        if at < 0:
            raise Rejected("bad-zip", "it has no directory at its end; copy it again")
        (length,) = struct.unpack_from("<I", tail, at + 12)
        if tail[max(0, at - 20) :][:4] == b"PK\6\7":
            file.seek(struct.unpack_from("<Q", tail, at - 12)[0])
            (length,) = struct.unpack_from("<Q", file.read(56), 40)
    if length > limits.max_zip_directory_bytes:
        raise Rejected(
            "zip-too-large",
            f"a directory of {length} bytes, at most {limits.max_zip_directory_bytes}; unpack it if it is trusted",
        )


@lru_cache(maxsize=4)
def _archive(path: Path, _size: int, _changed_ns: int) -> zipfile.ZipFile:
    # Kept open: the directory of an archive of 100,000 slices takes a second to read.
    return zipfile.ZipFile(path)


def _member(frame: Frame, limits: Limits) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
    archive = _archive_of(frame.path, limits)
    try:
        info = archive.getinfo(frame.member)
    except KeyError as error:
        raise Rejected("bad-zip", "a member is gone since the zip file was first read") from error
    _check_member(info, limits)
    return archive, info
