"""One DICOMweb server and nothing else: no request, and so no credential, ever goes to another origin.

Every address is built here from the one that was configured. Redirects are refused, and addresses in answers
(RetrieveURL, BulkDataURI, Content-Location, Link) are never followed. No message holds an address or a value that the
server sent.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import ipaddress
import json
import logging
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from tomoglot.studies.study import Rejected

T = TypeVar("T")

USER, PASSWORD, TOKEN = "TOMOGLOT_PACS_USER", "TOMOGLOT_PACS_PASSWORD", "TOMOGLOT_PACS_TOKEN"
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_ADVICE = {
    3: "it sends on to another address (a login page?), which is not followed: give that of the DICOMweb root itself",
    403: "these credentials may not read it",
    404: "it is not there: check the DICOMweb root, or the study was deleted meanwhile",
    406: "it does not send DICOM files as they are stored",
}

# The HTTP library logs every address, and with it UIDs.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Stopped(ValueError):
    """The pull cannot go on; what was fetched is kept, and the same command goes on from there."""


class Again(Rejected):
    """A failure that may pass: worth another attempt, after `wait_s` where the server said how long."""

    def __init__(self, reason: str, evidence: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason, evidence)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server may cost us.

    `attempts` are made of each request, with waits that double from `first_wait_s` up to `longest_wait_s`; a server
    that asks for a longer wait is left alone. `timeout_s` bounds each wait for bytes; over any longer time an answer
    has to come at `slowest_bytes_per_s`, so that one that drips cannot hold a worker for ever.
    """

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 120.0
    timeout_s: float = 30.0
    slowest_bytes_per_s: float = 1000.0
    instance_bytes: int = 4 << 30
    listing_bytes: int = 64 << 20
    page: int = 500
    listed: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Credentials:
    """Value of the Authorization header; never printed."""

    authorization: str = field(repr=False)

    @classmethod
    def of(cls, *, user: str = "", password: str = "", token: str = "") -> Credentials:
        """A user and a password (RFC 7617, UTF-8), or a bearer token (RFC 6750)."""
        if bool(token) == bool(user or password) or bool(user) != bool(password) or ":" in user:
            raise ValueError("credentials are a user (without a colon) and a password, or a token alone")
        # Checked here, because an HTTP library quotes a header that it cannot send in its error.
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise ValueError("the token holds a character that cannot be sent: wanted printable ASCII without spaces")
        basic = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        return cls(f"Bearer {token}" if token else f"Basic {basic}")


def read_credentials(file: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Credentials | None:
    """Read credentials from a JSON file (`user` and `password`, or `token`), else from the environment, else none.

    There is no other way in: every user of a machine can read the arguments of a command.

    Raises:
        ValueError: others may read the file, it is not such a JSON object, or it is incomplete.
    """
    if file is None:
        given = {"user": environ.get(USER, ""), "password": environ.get(PASSWORD, ""), "token": environ.get(TOKEN, "")}
        return Credentials.of(**given) if any(given.values()) else None
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise ValueError(f"others may read the credentials in {file.name!r}: chmod 600 it")
    try:
        given = dict(json.loads(file.read_bytes()))
        return Credentials.of(**{name: str(value) for name, value in given.items()})
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        # Not quoted, and no cause kept: the error would show what the file holds.
        wanted = '{"user": "...", "password": "..."} or {"token": "..."}'
        raise ValueError(f"the credentials in {file.name!r} are not JSON like {wanted}") from None


class Origin:
    """Requests to one origin: bounded, timed, retried, and stopped together by `stop`. Threads may share it."""

    def __init__(
        self, address: str, *, credentials: Credentials | None, limits: Limits, ca_file: Path | None = None
    ) -> None:
        self.root = _root(address, with_credentials=credentials is not None)
        self.limits = limits
        self._stopping = threading.Event()
        try:
            # Always verified: by the system's certificates, a hospital's own among them, or by those of the file.
            context = ssl.create_default_context(cafile=ca_file)
        except ssl.SSLError:
            raise ValueError("the file of certificates to trust holds none in PEM form") from None
        # Bodies are bounded as they arrive, so nothing may be packed: a small packed answer can be huge. The
        # environment's proxies and .netrc passwords are not the origin's, and not used.
        headers = {"Accept-Encoding": "identity"}
        if credentials is not None:
            headers["Authorization"] = credentials.authorization
        self._client = httpx.Client(
            headers=headers, verify=context, timeout=limits.timeout_s, follow_redirects=False, trust_env=False
        )
        self.close = self._client.close
        self.stop = self._stopping.set

    def retrying(self, work: Callable[[], T]) -> T:
        """Do `work`, again after a growing wait with jitter when it raises `Again`.

        Raises:
            Rejected: it still fails after the last attempt, or the server asks to wait longer than the limit.
            Stopped: the server cannot be reached at all.
        """
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return work()
            except Again as again:
                if attempt == self.limits.attempts or again.wait_s > self.limits.longest_wait_s:
                    why = f"{again.evidence} (attempt {attempt} of {self.limits.attempts}); pull again later"
                    if again.reason == "unreachable":
                        raise Stopped(f"{why}, or check the address and the network") from None
                    raise Rejected(again.reason, why) from None
                grown = min(self.limits.first_wait_s * 2 ** (attempt - 1), self.limits.longest_wait_s)
                self._stopping.wait(max(again.wait_s, grown * random.uniform(0.5, 1.0)))
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def get(self, path: str, *, accept: str, query: Mapping[str, str | int] | None = None) -> Iterator[httpx.Response]:
        """Give a good answer (200 or 204) whose body is still to be read.

        Raises:
            Again: a status, or a failure of the connection, that may pass.
            Rejected: any other status, a redirect among them.
            Stopped: the credentials or the certificate are refused, or `stop` was called.
        """
        self._go_on()
        try:
            url = httpx.URL(f"{self.root}{path}", params=query)
            with self._client.stream("GET", url, headers={"Accept": accept}) as response:
                _check(response)
                yield response
        except httpx.TransportError as error:
            raise _failure(error) from None

    def chunks(self, response: httpx.Response, most_bytes: int) -> Iterator[bytes]:
        """Yield the body as it arrives; one that is too long, too slow or packed is given up."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise Rejected("packed-answer", "the server compressed an answer that was asked for as it is")
        received, began = 0, time.monotonic()
        for chunk in response.iter_raw():
            self._go_on()
            received += len(chunk)
            if received > most_bytes:
                raise Rejected("answer-too-large", f"over {most_bytes} bytes in one answer")
            spent_s = time.monotonic() - began
            if spent_s > self.limits.timeout_s and received < self.limits.slowest_bytes_per_s * spent_s:
                raise Again("too-slow", f"{received} bytes came in {spent_s:.0f} s")
            yield chunk

    def read_list(self, path: str, query: Mapping[str, str | int]) -> list[dict[str, Any]]:
        """One QIDO-RS answer: a list of DICOM JSON objects (PS3.18, annex F); no content is an empty list."""
        with self.get(path, accept="application/dicom+json", query=query) as response:
            body = b"".join(self.chunks(response, self.limits.listing_bytes))
        try:
            found = json.loads(body) if body else []
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise Rejected("bad-listing", "the server's answer to a query is not DICOM JSON; is this a DICOMweb root?")
        return found

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Stopped("the pull was stopped")


def _root(address: str, *, with_credentials: bool) -> str:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.port != 0 and httpx.URL(address).host == parts.hostname
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("the origin is not a DICOMweb root; wanted an address like https://pacs.example/dicom-web")
    if "@" in parts.netloc:
        raise ValueError(f"the origin holds credentials: take them out, and set {USER} and {PASSWORD}, or {TOKEN}")
    if parts.scheme == "http" and with_credentials and not _is_loopback(parts.hostname):
        raise ValueError("credentials over plain http can be read on the way: use https, or a tunnel to localhost")
    return address.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 204):
        return
    said = f"the server answered {status}"
    if status == 401:
        raise Stopped(
            f"{said}: the credentials are missing or wrong; set {USER} and {PASSWORD}, or {TOKEN}, or give a file. It "
            "was not tried again, so that no account gets locked"
        )
    if status in _MAY_PASS:
        raise Again(f"status-{status}", said, wait_s=_retry_after_s(response.headers.get("retry-after", "")))
    advice = _ADVICE.get(status, _ADVICE.get(status // 100, "see its log for the reason"))
    raise Rejected(f"status-{status}", f"{said}: {advice}")


def _retry_after_s(value: str) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, sec. 10.2.3); 0 when unreadable."""
    try:
        return (
            float(value[:9])
            if value.isdecimal()
            else email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _failure(error: httpx.TransportError) -> ValueError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Stopped("the server's certificate is not trusted: give the file of its authority (ca_file)")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Again("unreachable", "no connection to the server")
    if isinstance(error, httpx.TimeoutException):
        return Again("timeout", "nothing came for the time allowed")
    return Again("cut-off", "the connection broke before the answer was whole")
