"""Pull studies into a folder: whole ones in `complete/`, unfinished ones in `partial/`, a journal of each beside.

A study's folder is moved to `complete/` at once, and only when every instance that the server lists lies in it under
its own UIDs: that place is the mark. When the server lists something else later, the folder is moved back first.
Folders and files are named by keyed pseudonyms; what is in them is raw and identifies persons.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tomoglot.studies import atomic
from tomoglot.studies.dicom import elements, files, values
from tomoglot.studies.dicomweb.listing import Instance, Wanted, find_studies, list_instances
from tomoglot.studies.dicomweb.multipart import read_parts
from tomoglot.studies.dicomweb.origin import Again, Credentials, Limits, Origin, Stopped
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.source import RejectedRow
from tomoglot.studies.study import Frame, Rejected

COMPLETE, PARTIAL, JOURNAL = "complete", "partial", "journal"
# As they are stored: without the last word a server would decode every compressed image (PS3.18, sec. 8.7.3.3.2).
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_UIDS = tuple(values.TAG[name] for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
_LONGEST_HEADER = 256 << 20
_ROOM_FOR_HEADERS = 64 << 10
_FAILED_IN_A_ROW = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull did: studies that are complete now, those that are not, what was fetched, and every failure.

    `failed` is also in `journal/failed.jsonl`; the same command tries again whatever is not complete.
    """

    complete: int
    incomplete: int
    instances: int
    bytes: int
    failed: tuple[RejectedRow, ...]


def pull(
    origin: str,
    out: Path,
    *,
    wanted: Wanted,
    pseudonyms: Pseudonyms,
    credentials: Credentials | None = None,
    ca_file: Path | None = None,
    concurrency: int = 4,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Fetch the studies that are `wanted` from the DICOMweb root `origin`, `concurrency` studies at a time.

    `out` is made private (mode 700). The same command again fetches only what is missing. `progress` gets the studies
    done and those in all.

    Raises:
        ValueError: the origin or the folder cannot be used as given, or the server does not list what was asked.
        Stopped: the credentials are refused, or the server is out of reach; what was fetched is kept.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, wanted 1 or more")
    server = Origin(origin, credentials=credentials, limits=limits or Limits(), ca_file=ca_file)
    complete = done = instances = size = 0
    failed: list[RejectedRow] = []
    with contextlib.closing(server), _alone_in(out), _written_at_the_end(out / JOURNAL / "failed.jsonl", failed):
        studies = _list_studies(server, wanted, pseudonyms, failed)
        pulls = (_StudyPull(server, out, pseudonyms, uid, count) for uid, count in studies.items())
        # Closed, and so the threads stopped, before the connections are: also when `progress` raises.
        with contextlib.closing(_each(pulls, server, concurrency)) as ended:
            for study in ended:
                done, complete = done + 1, complete + study.complete
                instances, size = instances + study.fetched, size + study.fetched_bytes
                failed += study.failed
                if progress is not None:
                    progress(done, len(studies))
    return Pulled(complete=complete, incomplete=done - complete, instances=instances, bytes=size, failed=tuple(failed))


def _list_studies(server: Origin, wanted: Wanted, names: Pseudonyms, failed: list[RejectedRow]) -> dict[str, int]:
    # All are listed before any is fetched: offsets would slip while a long pull lasts and the archive grows.
    found: dict[str, int] = {}
    for identifier, query in wanted.queries():
        answers = dict(find_studies(server, query))
        found |= answers
        if identifier and not answers:
            error = Rejected("not-found", "the server has no such study, or may not show it with these credentials")
            failed.append(RejectedRow.of(error, file=names.file(identifier)))
    return found


def _each(pulls: Iterable[_StudyPull], server: Origin, concurrency: int) -> Generator[_StudyPull, None, None]:
    waiting = iter(pulls)
    running: set[Future[_StudyPull]] = set()
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while len(running) < concurrency and (study := next(waiting, None)) is not None:
                    running.add(pool.submit(study.run))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            # After an error, or Ctrl-C: the others end at their next chunk, and what is whole is kept.
            server.stop()


class _StudyPull:
    """One study on its way; `count` is how many instances the server says it has (0: it does not say)."""

    def __init__(self, server: Origin, out: Path, names: Pseudonyms, uid: str, count: int) -> None:
        self.server, self.names, self.uid, self.count = server, names, uid, count
        self.alias = names.study(uid)
        self.partial, self.whole = out / PARTIAL / self.alias, out / COMPLETE / self.alias
        self.journal = out / JOURNAL / f"{self.alias}.jsonl"
        self.complete, self.fetched, self.fetched_bytes = False, 0, 0
        self.failed: list[RejectedRow] = []

    def run(self) -> _StudyPull:
        """Fetch what is missing; the study is complete afterwards, or `failed` says why not."""
        try:
            self._run()
        except Rejected as error:
            self.failed.append(RejectedRow.of(error, study=self.alias))
        except OSError as error:
            raise Stopped(f"cannot write what was fetched: {error.strerror}") from None
        return self

    def _run(self) -> None:
        listed = {self._alias(one): one for one in list_instances(self.server, self.uid)}
        whole = len(listed) >= max(self.count, 1)
        if self.whole.is_dir():
            self.complete = whole and self._kept(self.whole) == listed.keys() == _names(self.whole)
            if self.complete:
                return
            self.whole.replace(self.partial)
        self.partial.mkdir(mode=0o700, exist_ok=True)
        for left in self.partial.glob(f"{atomic.WRITING}*"):
            left.unlink()
        self._fetch(listed)
        if not whole:
            raise Rejected(
                "listing-short", f"the server counts {self.count} instances and lists {len(listed)}: pull again"
            )
        if extra := len(_names(self.partial) - listed.keys()):
            raise Rejected(
                "no-longer-listed",
                f"the server does not list {extra} of the files here any more: it may have corrected the study. Delete "
                "the study's folder in partial and pull again",
            )
        if self._kept(self.partial) == listed.keys():
            atomic.flush(self.partial)
            self.partial.replace(self.whole)
            atomic.flush(self.whole.parent)
            atomic.flush(self.partial.parent)
            self.complete = True

    def _fetch(self, listed: dict[str, Instance]) -> None:
        """Ask for a series as a whole where nothing of it is here, and for what is missing then one by one."""
        kept = self._kept(self.partial)
        series: dict[str, dict[str, Instance]] = {}
        for alias, one in listed.items():
            series.setdefault(one.series, {})[alias] = one
        failed_in_a_row = 0
        for series_uid, all_of_it in series.items():
            path = f"/studies/{self.uid}/series/{series_uid}"
            missing = {alias: one for alias, one in all_of_it.items() if alias not in kept}
            if len(missing) == len(all_of_it) > 1:
                # What goes wrong here is told below, by the instances that are still missing.
                with contextlib.suppress(Rejected):
                    self._retrieve(path, missing)
            for alias, one in list(missing.items()):
                try:
                    self._retrieve(f"{path}/instances/{one.instance}", asked := {alias: one})
                    if asked:
                        raise Rejected("wrong-instance", "the server sent another instance than the one asked for")
                    failed_in_a_row = 0
                except Rejected as error:
                    self.failed.append(RejectedRow.of(error, study=self.alias, file=f"{alias}.dcm"))
                    failed_in_a_row += 1
                if failed_in_a_row == _FAILED_IN_A_ROW:
                    raise Rejected("given-up", f"{failed_in_a_row} instances in a row failed; the rest was not tried")

    def _retrieve(self, path: str, missing: dict[str, Instance]) -> None:
        """Fetch what is `missing` from one address, and take out of `missing` what came."""
        asked = len(missing)
        most_bytes = asked * (self.server.limits.instance_bytes + _ROOM_FOR_HEADERS)

        def attempt() -> None:
            try:
                with self.server.get(path, accept=_ACCEPT) as response:
                    chunks = self.server.chunks(response, most_bytes)
                    for number, body in enumerate(read_parts(chunks, response.headers.get("content-type", "")), 1):
                        if number > asked:
                            raise Rejected("more-than-listed", f"over {asked} instances came where {asked} are listed")
                        self._take(body, missing)
            except (Again, EOFError) as broken:
                # When some came: asked again as a whole, a series would send them once more.
                if len(missing) == asked:
                    raise broken if isinstance(broken, Again) else Again("cut-off", str(broken)) from None

        self.server.retrying(attempt)

    def _take(self, body: Iterable[bytes], missing: dict[str, Instance]) -> None:
        """Keep one instance, whole and flushed, if its own UIDs are those of one that is missing."""
        size, most = 0, self.server.limits.instance_bytes
        # A scratch file is private, and stays so under its final name.
        with atomic.scratch(self.partial / "instance") as part:
            with part.open("wb") as file:
                for piece in body:
                    size += len(piece)
                    if size > most:
                        raise Rejected("instance-too-large", f"over {most} bytes")
                    file.write(piece)
            # Documents and raw data, which studies hold too, are all header.
            limits = files.Limits(max_file_bytes=most, max_header_bytes=_LONGEST_HEADER)
            header = elements.read_elements(Frame(path=part), limits).elements
            alias = self._alias(Instance(*(values.word(header, tag) for tag in _UIDS)))
            if alias not in missing:
                return
            atomic.flush(part)
            part.replace(self.partial / f"{alias}.dcm")
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"file": alias, "bytes": size}) + "\n")
        del missing[alias]
        self.fetched += 1
        self.fetched_bytes += size

    def _kept(self, folder: Path) -> set[str]:
        """Instances that lie in a folder of this study with as many bytes as the journal says."""
        kept = set()
        for line in self.journal.read_text(encoding="utf-8").splitlines() if self.journal.exists() else ():
            # A line may be torn by a killed process, and two that follow be one: those files are fetched again.
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                entry = json.loads(line)
                if (folder / f"{entry['file']}.dcm").stat().st_size == entry["bytes"]:
                    kept.add(entry["file"])
        return kept

    def _alias(self, one: Instance) -> str:
        return self.names.file("/".join(one))


def _names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".dcm") for path in folder.iterdir()}


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and out.stat().st_mode & 0o077:
        raise ValueError(f"others may read the folder {out.name!r}; what is pulled identifies persons: chmod 700 it")
    for name in (COMPLETE, PARTIAL, JOURNAL):
        (out / name).mkdir(mode=0o700, exist_ok=True)
    handle = os.open(out / JOURNAL, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another pull is writing into {out.name!r}; wait for it, or pull elsewhere") from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _written_at_the_end(path: Path, rows: list[RejectedRow]) -> Iterator[None]:
    try:
        yield
    finally:
        lines = "".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)
        atomic.write_bytes(path, lines.encode())
