"""The DICOM files in a multipart/related answer (RFC 2046, sec. 5.1; RFC 2387), read as a stream in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.message import Message

from tomoglot.studies.study import Rejected

_LONGEST_HEAD = 16 << 10
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{1,70}")


def read_parts(chunks: Iterable[bytes], content_type: str) -> Iterator[Iterator[bytes]]:
    """Yield the body of each part, in pieces; what its reader leaves of it is skipped.

    Never more is held than one chunk, a delimiter and 16 KiB of part headers. How long a body may be is the caller's
    business, and where chunks come from.

    Raises:
        Rejected: the answer is not multipart, is malformed, or has a part that is not DICOM.
        EOFError: it ends before its closing delimiter.
    """
    delimiter = b"\r\n--" + _boundary(content_type)
    # The first delimiter may open the answer: the line break before it is then missing.
    stream = _Stream(b"\r\n", iter(chunks))
    stream.line(delimiter)
    while True:
        stream.more(2)
        if stream.held.startswith(b"--"):
            return
        padding, *headers = stream.line(b"\r\n\r\n").split(b"\r\n")
        if padding.strip(b" \t"):
            raise Rejected("bad-multipart", "text on the line of a delimiter: the server's answer is malformed")
        kinds = [
            value for name, _, value in (line.lower().partition(b":") for line in headers) if name == b"content-type"
        ]
        if any(kind.partition(b";")[0].strip() != b"application/dicom" for kind in kinds):
            raise Rejected("not-dicom", "a part of the answer is no DICOM file; addresses in it are not followed")
        body = stream.until(delimiter)
        yield body
        for _ in body:
            continue


class _Stream:
    def __init__(self, held: bytes, chunks: Iterator[bytes]) -> None:
        self.held, self.chunks = held, chunks

    def more(self, size: int) -> None:
        while len(self.held) < size:
            chunk = next(self.chunks, None)
            if chunk is None:
                raise EOFError("the answer ends before its closing delimiter")
            self.held += chunk

    def until(self, mark: bytes) -> Iterator[bytes]:
        """Yield what comes before `mark`, and drop the mark."""
        while (at := self.held.find(mark)) < 0:
            ready, self.held = self.held[: 1 - len(mark)], self.held[1 - len(mark) :]
            yield ready
            self.more(len(self.held) + 1)
        ready, self.held = self.held[:at], self.held[at + len(mark) :]
        yield ready

    def line(self, mark: bytes) -> bytes:
        """What comes before `mark`, which has to be short."""
        line = b""
        for piece in self.until(mark):
            line += piece
            if len(line) > _LONGEST_HEAD:
                raise Rejected("bad-multipart", f"over {_LONGEST_HEAD} bytes of headers where a part was due")
        return line


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary() or ""
    if message.get_content_type() != "multipart/related" or not _BOUNDARY.fullmatch(boundary):
        raise Rejected("not-multipart", "the server's answer is not multipart/related with a proper boundary")
    return boundary.encode("ascii")
