"""A test-only DICOMweb server on loopback that does as it is told: well by default, badly where a test says so."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydicom import dcmread

BOUNDARY = "a-boundary"
Behaviour = Callable[["Handler"], None]


class _Quiet(ThreadingHTTPServer):
    """A client that hangs up is no error here: the usual server prints a traceback with its address."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Pacs:
    """`requests` holds (path, headers) of all that was asked. `misbehave[end of a path]` is a list of behaviours, used
    up one a request; then the server is good again."""

    def __init__(self, *, certificate: Path | None = None, key: Path | None = None) -> None:
        self.instances: dict[tuple[str, str, str], bytes] = {}
        self.studies: dict[str, dict] = {}
        self.misbehave: dict[str, list[Behaviour]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.page_of = lambda found, limit, offset: found[offset : offset + limit]
        self.lock = threading.Lock()
        self.server = _Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"pacs": self}))
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.address = f"http://127.0.0.1:{self.server.server_port}/dicom-web"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.address = self.address.replace("http", "https", 1)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Pacs:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, *files: Path) -> None:
        for file in files:
            header = dcmread(file, stop_before_pixels=True)
            uids = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID))
            self.instances[uids] = file.read_bytes()
            study = self.studies.setdefault(uids[0], {"00080061": {"vr": "CS", "Value": []}})
            study["0020000D"] = {"vr": "UI", "Value": [uids[0]]}
            study["00080020"] = {"vr": "DA", "Value": [str(header.get("StudyDate", ""))]}
            study["00080050"] = {"vr": "SH", "Value": [str(header.get("AccessionNumber", ""))]}
            study["00080061"]["Value"] = sorted({*study["00080061"]["Value"], header.Modality})
            study["00201208"] = {"vr": "IS", "Value": [sum(key[0] == uids[0] for key in self.instances)]}

    def list(self, path: str, query: dict[str, str]) -> list[dict]:
        parts = path.split("/")[3:]
        if parts == []:
            tags = {"0020000D", "00080050", "00080061"} & query.keys()
            found = [s for s in self.studies.values() if all(query[tag] in s[tag]["Value"] for tag in tags)]
        elif len(parts) == 2:
            found = [
                {"0020000E": {"Value": [uid]}} for uid in sorted({k[1] for k in self.instances if k[0] == parts[0]})
            ]
        else:
            keys = [key for key in self.instances if key[:2] == (parts[0], parts[2])]
            found = [{"00080018": {"Value": [key[2]]}} for key in keys]
        return self.page_of(found, int(query["limit"]), int(query["offset"]))

    def files(self, path: str) -> list[bytes]:
        parts = path.split("/")[3::2]
        return [content for key, content in self.instances.items() if list(key[: len(parts)]) == parts]


class Handler(BaseHTTPRequestHandler):
    pacs: Pacs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        with self.pacs.lock:
            self.pacs.requests.append((path, dict(self.headers)))
            waiting = next((w for end, w in self.pacs.misbehave.items() if w and path.endswith(end)), None)
            behaviour = waiting.pop(0) if waiting else None
        try:
            if behaviour is not None:
                behaviour(self)
            elif "dicom+json" in self.headers["Accept"]:
                self.answer(200, json.dumps(self.pacs.list(path, query)).encode(), "application/dicom+json")
            else:
                self.multipart(self.pacs.files(path))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def answer(self, status: int, body: bytes = b"", content_type: str = "text/plain", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def multipart(
        self, files: list[bytes], part: str = "Content-Type: application/dicom", cut: int | None = None
    ) -> None:
        """Files as parts; with `cut` the connection is closed after so many bytes, though more were announced."""
        body = b"".join(f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode() + file + b"\r\n" for file in files)
        body += f"--{BOUNDARY}--".encode()
        self.send_response(200)
        self.send_header("Content-Type", f'multipart/related; type="application/dicom"; boundary={BOUNDARY}')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, *_) -> None:
        pass
