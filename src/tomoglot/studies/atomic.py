"""Files that appear whole or not at all: written beside the target, flushed to disk, then moved into its place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How everything that is not whole yet is called, so that what a killed process left can be told and removed.
WRITING = ".writing-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in `path`'s folder; on leaving without an error it takes the place of `path`.

    The data and the folder entry are flushed to disk before this returns, so that a file which was announced
    survives a power cut. After an error nothing is left behind and an older file stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path) as part:
            yield part
            part.chmod(0o666 & ~_umask())
            flush(part)
            part.replace(path)
        flush(path.parent)
    except OSError as error:
        # A full disk names no file, a folder that may not be written the temporary one: say which was wanted.
        if error.errno and (error.filename is None or WRITING in str(error.filename)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `beside` that is gone afterwards."""
    handle, name = tempfile.mkstemp(prefix=f"{WRITING}{beside.name}-", dir=beside.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(data)


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk: they survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Wait until a folder and everything below it is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def _umask() -> int:
    # mkstemp makes the file private; a target written in the ordinary way would follow the umask, so ours does too.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
