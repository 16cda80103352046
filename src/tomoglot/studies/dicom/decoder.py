"""Compressed pixels, decoded in a child process: a decoder in C may crash, hang or take all memory, and only it dies.

One child serves the whole of a process's series; it is started when first needed and again after it died. Run as a
program, this file is that child: `python -m tomoglot.studies.dicom.decoder <number of its socket>`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.study import Rejected

MEMORY_BYTES = 3 << 30
_SECONDS_TO_START = 60.0
# gdcm comes first in pydicom's own order, and is slower: 9.2 against 5.1 ms a CT slice of JPEG-LS, 25.9 against 20.7
# of JPEG 2000. Where the faster one is absent or fails, every other one is tried.
_PREFERRED = {"1.2.840.10008.1.2.4.8": "pyjpegls", "1.2.840.10008.1.2.4.9": "pylibjpeg"}
# What decoders raise on bytes that are not theirs. Any other error ends the child, which is a refusal as well.
_FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, OSError, MemoryError)


class _Child:
    """The process, and the lock that gives it one frame at a time."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a fork: its parent's child is not its own, and two that write to one would mix their frames."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None

    def ask(self, options: dict[str, object], frame: bytes, *, seconds: float) -> tuple[dict[str, str], bytes]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None and self._line is not None, "started"
            # EOFError and OSError: it died, before or after it was asked.
            with contextlib.suppress(EOFError, OSError):
                self._line.send_bytes(json.dumps({**options, "seconds": seconds}).encode())
                self._line.send_bytes(frame)
                if self._line.poll(seconds):
                    answer = json.loads(self._line.recv_bytes())
                    return answer, self._line.recv_bytes() if "dtype" in answer else b""
                self.close()
                raise Rejected("decoder-failed", f"no answer within {seconds:g} s")
            self.close()
            raise Rejected("decoder-failed", "the decoder crashed, or was ended for its memory")

    def close(self) -> None:
        process, line, self._process, self._line = self._process, self._line, None, None
        if process is not None and line is not None:
            line.close()
            process.kill()
            process.wait()

    def _start(self) -> None:
        self.close()
        self._line, theirs = multiprocessing.Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tomoglot.studies.dicom.decoder", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # One thread: each would reserve address space, of which the child has little.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,  # out of reach of a terminal's Ctrl-C
        )
        theirs.close()
        with contextlib.suppress(EOFError, OSError):
            if self._line.poll(_SECONDS_TO_START) and self._line.recv_bytes() == b"ready":
                return
        self.close()
        raise Rejected("codec-missing", "no decoder starts; pip install 'tomoglot[dicom]'")


_CHILD = _Child()
os.register_at_fork(after_in_child=_CHILD.forget)
atexit.register(_CHILD.close)


def decode(frame: bytes, options: dict[str, object], *, seconds: float) -> NDArray[np.generic]:
    """Decode one compressed frame (the bytes of its fragments, joined) to rows x columns stored values.

    `options` are those of pydicom's `Decoder.as_array`: transfer syntax, rows, columns, bits and sign.

    Raises:
        Rejected: `decoder-failed` where the frame cannot be decoded, or where decoding crashed, took longer than
            `seconds` or more than 3 GiB; `codec-missing` where no installed decoder knows the transfer syntax.
    """
    try:
        answer, pixels = _CHILD.ask(options, frame, seconds=seconds)
        if "fault" in answer:
            raise Rejected(answer["fault"], answer["evidence"])
    except Rejected as error:
        what = "transfer syntax {transfer_syntax_uid}, {rows} x {columns} pixels of {bits_stored} bits"
        raise Rejected(error.reason, f"{what.format(**options)}: {error.evidence}") from None
    return np.frombuffer(pixels, dtype=answer["dtype"]).reshape(int(answer["rows"]), -1)


def _serve(line: Connection) -> None:
    """Answer until the parent is gone."""
    line.send_bytes(b"ready")
    with contextlib.suppress(EOFError):
        while True:
            options = json.loads(line.recv_bytes())
            frame = line.recv_bytes()
            # Should the parent die while a decoder hangs, nobody else would end this process.
            signal.alarm(int(options.pop("seconds")) + 5)
            answer, pixels = _decoded(frame, options)
            signal.alarm(0)
            line.send_bytes(json.dumps(answer).encode())
            if pixels is not None:
                line.send_bytes(pixels)


def _decoded(frame: bytes, options: dict[str, object]) -> tuple[dict[str, str], memoryview | None]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    options["transfer_syntax_uid"] = syntax = UID(str(options["transfer_syntax_uid"]))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return {"fault": "codec-missing", "evidence": "not known as a syntax of compressed images"}, None
    if not decoder.is_available:
        return {"fault": "codec-missing", "evidence": "no decoder is installed; pip install 'tomoglot[dicom]'"}, None
    first, fault = _PREFERRED.get(syntax[:-1], ""), ""
    for plugin in dict.fromkeys((first if first in decoder.available_plugins else "", "")):
        try:
            wrapped = encapsulate([frame], has_bot=False)
            pixels, _ = decoder.as_array(wrapped, index=0, raw=True, decoding_plugin=plugin, **options)
        except _FAULTS as error:
            fault = type(error).__name__  # its words may quote the data
            continue
        return {"dtype": pixels.dtype.str, "rows": str(len(pixels))}, np.ascontiguousarray(pixels).data.cast("B")
    return {"fault": "decoder-failed", "evidence": f"damaged, or of a kind that is not decoded ({fault})"}, None


def _limit() -> None:
    warnings.simplefilter("ignore")
    import pydicom.pixels  # noqa: F401  loaded before the limit, which is then a frame's

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a lower limit that is there already is as good
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _limit()
    _serve(Connection(int(sys.argv[1])))
