"""Walk the elements of a DICOM header within fixed bounds and keep those that are wanted.

Written here, and not left to pydicom, because a hostile file must cost a known amount: every length is checked before
it is believed, nothing is inflated beyond a limit, elements and levels are counted. pydicom is the second opinion in
the tests; benchmarks/ingest_dicom.py compares the two.
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass

from tomoglot.studies.dicom.files import Limits, read_start
from tomoglot.studies.dicom.values import BINARY, TAG, WANTED, Item, Value, word
from tomoglot.studies.study import Frame, Rejected

FIRST_READ = 1 << 16
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, PIXEL_DATA)
_SHORT = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT_VRS = frozenset(vr.encode() for vr in _SHORT.split())
IMPLICIT, DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
NATIVE = frozenset((IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED, BIG_ENDIAN))
# Wanted tags as they stand in a file.
_WANTED_BYTES = {
    order: frozenset(struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF) for tag in WANTED) for order in "<>"
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """Wanted elements of a file, and where its pixel data begin in `content` (the file's bytes, inflated if need be).

    `content` may end before the pixels do; `size` is how long it is when whole. `pixel_length` is None where the
    pixel data are a stream of items (compressed), `pixel_at` where there are none.
    """

    elements: Item
    syntax: str
    content: bytes
    size: int
    pixel_tag: int = 0
    pixel_at: int | None = None
    pixel_length: int | None = None


class _Short(Exception):
    """More bytes are needed than were read."""


def read_elements(where: Frame, limits: Limits, *, whole: bool = False) -> Parsed:
    """Read the header of a file, or with `whole` all of its bytes.

    Raises:
        Rejected: the file cannot be read, is not DICOM, is malformed, or exceeds a limit.
    """
    most = limits.max_file_bytes if whole else min(FIRST_READ, limits.max_header_bytes)
    while True:
        content, size = read_start(where, most, limits)
        try:
            return _parse(content, size, limits, whole=whole)
        except _Short:
            if len(content) >= size:
                raise Rejected("truncated-header", f"the file ends after {size} bytes, inside its header") from None
            if most >= limits.max_header_bytes:
                raise Rejected("header-too-large", f"no pixel data in the first {most} bytes") from None
            most = min(8 * most, limits.max_header_bytes)


def _parse(content: bytes, size: int, limits: Limits, *, whole: bool) -> Parsed:
    start, syntax = 0, ""
    if content[128:132] == b"DICM":
        meta = _Walker(content, limits, explicit=True, big=False, meta=True)
        walked, _, _ = meta.data_set(132, len(content), 0, keep=True)
        syntax, start = word(walked, TAG["TransferSyntaxUID"]), meta.stopped_at
        if not syntax:
            raise Rejected("no-transfer-syntax", "the file does not say how it is encoded (0002,0010)")
    elif content[4:6].isalpha() and content[4:6].isupper():
        syntax = "1.2.840.10008.1.2.1"
    else:
        syntax = IMPLICIT
    if syntax == DEFLATED:
        if len(content) < size:
            raise _Short
        content = _inflated(content[start:], limits.max_file_bytes if whole else limits.max_header_bytes)
        start, size = 0, len(content)
    walker = _Walker(content, limits, explicit=syntax != IMPLICIT, big=syntax == BIG_ENDIAN)
    elements, _, _ = walker.data_set(start, len(content), 0, keep=True)
    tag, length, at = walker.stopped
    if tag == 0 and len(content) < size:
        raise _Short
    found = tag in PIXEL_TAGS
    return Parsed(
        elements=elements,
        syntax=syntax,
        content=content,
        size=size,
        pixel_tag=tag,
        pixel_at=at if found else None,
        pixel_length=length if found and length != UNDEFINED else None,
    )


def _inflated(zipped: bytes, most: int) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = engine.decompress(zipped, most)
    except zlib.error as error:
        raise Rejected("bad-deflate", "the deflated data set cannot be inflated; the file is damaged") from error
    if engine.unconsumed_tail:
        raise Rejected("deflate-bomb", f"{len(zipped)} bytes inflate to more than {most}")
    if not engine.eof:
        raise Rejected("bad-deflate", f"the deflated data set breaks off after {len(zipped)} bytes")
    return out


class _Walker:
    def __init__(self, buffer: bytes, limits: Limits, *, explicit: bool, big: bool, meta: bool = False) -> None:
        self.buffer, self.limits, self.explicit, self.meta = buffer, limits, explicit, meta
        self.order = ">" if big else "<"
        self.short = struct.Struct(self.order + "HH2sH")
        self.fast = struct.Struct(self.order + "4s2sH")
        self.plain = struct.Struct(self.order + "HHI")
        self.long = struct.Struct(self.order + "I")
        self.count = 0
        self.deadline = time.monotonic() + limits.seconds_per_file
        # The element that ended the walk (tag, length, where its value begins), and where that element begins.
        self.stopped = (0, 0, 0)
        self.stopped_at = len(buffer)

    def data_set(self, at: int, end: int, depth: int, *, keep: bool) -> tuple[Item, int, bool]:
        """Elements from `at` on, where the walk ended, and whether an item delimiter ended it.

        A whole data set ends at its pixel data, file meta information at the first element of another group.
        """
        elements: Item = {}
        while (at := self._skip(at, end)) < end:
            begun = at
            tag, vr, length, at = self._head(at, end)
            if depth == 0 and (tag >= PIXEL_TAGS[0] or (self.meta and tag >> 16 != 2)):
                self.stopped, self.stopped_at = (tag, length, at), begun
                return elements, at, False
            if tag == ITEM_END and depth:
                return elements, at, True
            kind = WANTED.get(tag) if keep else None
            value: Value
            if length == UNDEFINED or (kind == b"SQ" and vr in (b"SQ", b"UN")):
                value, at = self._sequence(at, end, length, depth, vr=vr, keep=kind == b"SQ")
            else:
                stop = self._stop(at, length, end)
                value = b"" if kind is None else self._value(kind if vr == b"UN" else vr, at, stop)
                at = stop
            if kind is not None:
                if elements.get(tag, value) != value:
                    raise Rejected(
                        "duplicate-element", f"({tag >> 16:04x},{tag & 0xFFFF:04x}) stands twice, and differs"
                    )
                elements[tag] = value
        return elements, at, False

    def _skip(self, at: int, end: int) -> int:
        """Go on beyond plain elements that nobody wants: nine in ten, so this is written to be fast."""
        if self.meta:
            return at
        buffer, count, last = self.buffer, self.count, end - 8
        if self.explicit:
            unpack, wanted = self.fast.unpack_from, _WANTED_BYTES[self.order]
            while at <= last:
                tag, vr, length = unpack(buffer, at)
                beyond = at + 8 + length
                if tag in wanted or vr not in SHORT_VRS or beyond > end:
                    break
                at, count = beyond, count + 1
        else:
            unpack = self.plain.unpack_from
            while at <= last:
                group, number, length = unpack(buffer, at)
                beyond = at + 8 + length
                if group >= 0x7FE0 or beyond > end or (group << 16 | number) in WANTED:
                    break
                at, count = beyond, count + 1
        self._count(count - self.count)
        return at

    def _head(self, at: int, end: int) -> tuple[int, bytes, int, int]:
        """Tag, VR, length and the place of the value."""
        self._count()
        if at + 8 > end:
            raise self._cut(at + 8, end)
        group, number, vr, length = self.short.unpack_from(self.buffer, at)
        tag = group << 16 | number
        if not self.explicit or group == 0xFFFE:
            if group == 0xFFFE and tag != ITEM_END:
                raise Rejected("malformed", f"byte {at}: an item or its end where an element must begin")
            length = self.long.unpack_from(self.buffer, at + 4)[0]
            return tag, WANTED.get(tag, b"SQ" if length == UNDEFINED else b"UN"), length, at + 8
        if vr in LONG_VRS:
            if at + 12 > end:
                raise self._cut(at + 12, end)
            return tag, vr, self.long.unpack_from(self.buffer, at + 8)[0], at + 12
        if not (vr.isalpha() and vr.isupper()) and not (self.meta and group != 2):
            raise Rejected("malformed", f"byte {at}: no value representation where one must be")
        return tag, vr, length, at + 8

    def _sequence(self, at: int, end: int, length: int, depth: int, *, vr: bytes, keep: bool) -> tuple[list[Item], int]:
        """Items of a sequence, or of anything else of undefined length; kept or only walked over."""
        if depth >= self.limits.max_depth:
            raise Rejected("nested-too-deep", f"sequences inside sequences, more than {self.limits.max_depth} levels")
        closed = length == UNDEFINED
        stop = end if closed else self._stop(at, length, end)
        # Inside an element of unknown VR everything is implicit (PS3.5, 6.2.2, note).
        outer, self.explicit = self.explicit, self.explicit and vr != b"UN"
        items: list[Item] = []
        while at < stop:
            self._count()
            if at + 8 > stop:
                raise self._cut(at + 8, stop)
            group, number, size = self.plain.unpack_from(self.buffer, at)
            tag, at = group << 16 | number, at + 8
            if tag == SEQUENCE_END and closed:
                self.explicit = outer
                return items, at
            if tag != ITEM:
                raise Rejected("malformed", f"byte {at - 8}: something else where a sequence's item must begin")
            item, at = self._item(at, stop, size, depth + 1, keep=keep)
            if keep:
                items.append(item)
        if closed:
            raise self._cut(stop + 8, stop)
        self.explicit = outer
        return items, at

    def _item(self, at: int, end: int, size: int, depth: int, *, keep: bool) -> tuple[Item, int]:
        if size == UNDEFINED:
            item, at, delimited = self.data_set(at, end, depth, keep=keep)
            if not delimited:
                raise self._cut(end + 8, end)
            return item, at
        stop = self._stop(at, size, end)
        return (self.data_set(at, stop, depth, keep=True)[0] if keep else {}), stop

    def _value(self, vr: bytes, at: int, stop: int) -> Value:
        kind = BINARY.get(vr)
        if kind is None:
            return self.buffer[at:stop]
        code, width = kind
        count = (stop - at) // width
        return struct.unpack_from(f"{self.order}{count}{code}", self.buffer, at)

    def _stop(self, at: int, length: int, end: int) -> int:
        stop = at + length
        if stop > end:
            raise self._cut(stop, end)
        return stop

    def _cut(self, wanted: int, end: int) -> Exception:
        """What to raise where `wanted` lies beyond `end`: an item that is too small, or bytes not read yet."""
        if end < len(self.buffer):
            return Rejected("malformed", f"byte {end}: an element goes on beyond the item that holds it")
        return _Short()

    def _count(self, more: int = 1) -> None:
        before, self.count = self.count, self.count + more
        if self.count > self.limits.max_elements:
            raise Rejected("too-many-elements", f"more than {self.limits.max_elements} elements")
        if before >> 12 != self.count >> 12 and time.monotonic() > self.deadline:
            raise Rejected("too-slow", f"its header took more than {self.limits.seconds_per_file:g} s")
