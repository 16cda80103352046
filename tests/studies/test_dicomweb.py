"""A pull keeps whole studies, asks one origin and says nothing that identifies: against a server that errs."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import logging
import random
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from dicom_series import axis_affine, marked_volume, write_series
from pacs import BOUNDARY, Pacs

from tomoglot.studies import atomic
from tomoglot.studies.dicomweb import Credentials, Limits, Stopped, Wanted, pull, read_credentials, read_identifiers
from tomoglot.studies.dicomweb.multipart import read_parts
from tomoglot.studies.dicomweb.origin import Origin
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.study import Rejected

NAMES = Pseudonyms(b"a key only for tests")
QUICK = Limits(attempts=3, first_wait_s=0.01, longest_wait_s=2.0, timeout_s=20.0, page=3)
LOGIN = Credentials.of(user="reader", password="s3cret-pass")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two studies: the first of two series of four slices, the second of one series of two."""
    folder = tmp_path_factory.mktemp("archive")
    series = [("S1", "1", 4, "Doe^Jane"), ("S1", "2", 4, "Doe^Jane"), ("S2", "1", 2, "Roe^Rita")]
    return [
        write_series(
            folder / f"{study}-{number}",
            marked_volume((6, 5, slices)),
            axis_affine(),
            study=study,
            series=number,
            header={"PatientName": name, "AccessionNumber": f"ACC-{study}", "StudyDate": "20200203"},
        )
        for study, number, slices, name in series
    ]


@pytest.fixture(autouse=True)
def a_fast_disk(monkeypatch):
    """No power is cut here: what is written need not be waited for."""
    monkeypatch.setattr(atomic, "flush", lambda path: None)


@pytest.fixture
def pacs(files):
    with Pacs() as server:
        server.add(*itertools.chain(*files))
        yield server


@pytest.fixture
def elsewhere():
    with Pacs() as server:
        yield server


def run(pacs, out, *, wanted=None, limits=QUICK, concurrency=1, **rest):
    wanted = wanted or Wanted(modality="MR")
    return pull(pacs.address, out, wanted=wanted, pseudonyms=NAMES, limits=limits, concurrency=concurrency, **rest)


def reasons(pulled):
    return sorted(row.reason for row in pulled.failed)


def stored(folder):
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*/*"))


def in_the_archive(pacs):
    return sorted(hashlib.sha256(content).hexdigest() for content in pacs.instances.values())


def first_instance(pacs):
    return next(iter(pacs.instances))


def test_a_pull_keeps_every_byte_of_every_study(pacs, tmp_path):
    steps = []
    pulled = run(pacs, tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    assert (pulled.complete, pulled.incomplete, pulled.instances, pulled.failed) == (2, 0, 10, ())
    assert pulled.bytes == sum(map(len, pacs.instances.values()))
    assert stored(tmp_path / "out" / "complete") == in_the_archive(pacs)
    assert steps == [(1, 2), (2, 2)]


def test_what_is_here_is_not_fetched_again(pacs, tmp_path):
    run(pacs, tmp_path / "out")
    pacs.requests.clear()
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, pulled.instances) == (2, 0)
    assert {headers["Accept"] for _, headers in pacs.requests} == {"application/dicom+json"}


def test_a_whole_series_is_one_request_and_is_asked_for_as_it_is_stored(pacs, tmp_path):
    run(pacs, tmp_path / "out")
    fetched = [(path, headers) for path, headers in pacs.requests if "multipart" in headers["Accept"]]
    assert len(fetched) == 3
    assert all("transfer-syntax=*" in headers["Accept"] for _, headers in fetched)


def test_names_on_disk_are_pseudonyms_and_all_is_private(pacs, tmp_path):
    run(pacs, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "out").rglob("*"):
        assert re.fullmatch(
            r"complete|partial|journal|failed\.jsonl|v[a-z2-7]{12}(\.jsonl)?|f[a-z2-7]{12}\.dcm", path.name
        )
        if path.suffix == ".dcm":
            assert path.stat().st_mode & 0o777 == 0o600
    study = first_instance(pacs)[0]
    assert (tmp_path / "out" / "complete" / NAMES.study(study)).is_dir()
    journals = "".join(path.read_text() for path in (tmp_path / "out" / "journal").iterdir())
    assert not any(uid in journals for key in pacs.instances for uid in key)


def test_a_folder_that_others_may_read_is_refused(pacs, tmp_path):
    (tmp_path / "out").mkdir(mode=0o755)
    with pytest.raises(ValueError, match="chmod 700"):
        run(pacs, tmp_path / "out")
    assert not pacs.requests


def test_a_study_that_grew_on_the_server_is_no_longer_complete_until_the_rest_is_here(pacs, files, tmp_path):
    late, late_file = first_instance(pacs), files[0][0]
    del pacs.instances[late]
    pacs.add(*files[1])  # corrects the count
    assert run(pacs, tmp_path / "out").complete == 2
    pacs.add(late_file)
    pacs.misbehave[late[2]] = [lambda handler: handler.answer(404)]
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, reasons(pulled)) == (1, ["status-404"])
    assert not (tmp_path / "out" / "complete" / NAMES.study(late[0])).exists()
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, pulled.instances) == (2, 1)


def test_a_study_that_shrank_on_the_server_is_not_complete(pacs, tmp_path):
    run(pacs, tmp_path / "out")
    gone = first_instance(pacs)
    del pacs.instances[gone]
    pacs.studies[gone[0]]["00201208"]["Value"] = [7]
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, reasons(pulled)) == (1, ["no-longer-listed"])


def test_a_listing_shorter_than_the_servers_own_count_is_not_complete(pacs, tmp_path):
    pacs.studies[first_instance(pacs)[0]]["00201208"]["Value"] = [9]
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, reasons(pulled)) == (1, ["listing-short"])


def test_a_file_that_was_cut_short_on_disk_is_fetched_again(pacs, tmp_path):
    run(pacs, tmp_path / "out")
    file = next((tmp_path / "out" / "complete").glob("*/*.dcm"))
    file.write_bytes(file.read_bytes()[:-10])
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, pulled.instances) == (2, 1)
    assert stored(tmp_path / "out" / "complete") == in_the_archive(pacs)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_origin_is_refused_and_gets_no_password(pacs, elsewhere, tmp_path, status):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(status, Location=elsewhere.address + "/studies")]
    with pytest.raises(ValueError, match=rf"{status}: it sends on to another address"):
        run(pacs, tmp_path / "out", credentials=LOGIN)
    assert elsewhere.requests == []


def test_a_redirect_of_an_instance_is_listed_and_not_followed(pacs, elsewhere, tmp_path):
    uid = first_instance(pacs)[2]
    send_on = lambda handler: handler.answer(302, Location=elsewhere.address)  # noqa: E731
    pacs.misbehave = {uid: [send_on], "/series/" + first_instance(pacs)[1]: [send_on]}
    pulled = run(pacs, tmp_path / "out", credentials=LOGIN)
    assert (pulled.complete, reasons(pulled), elsewhere.requests) == (1, ["status-302"], [])


def test_addresses_of_bulk_data_elsewhere_are_not_followed(pacs, elsewhere, tmp_path):
    key = first_instance(pacs)
    pacs.studies[key[0]]["00081190"] = {"vr": "UR", "Value": [elsewhere.address + "/studies/" + key[0]]}
    pacs.studies[key[0]]["7FE00010"] = {"vr": "OW", "BulkDataURI": elsewhere.address + "/bulk"}
    part = f"Content-Type: application/octet-stream\r\nContent-Location: {elsewhere.address}/bulk"
    bulk = lambda handler: handler.multipart([b"1234"], part)  # noqa: E731
    pacs.misbehave = {key[1]: [bulk], key[2]: [bulk]}
    pulled = run(pacs, tmp_path / "out", credentials=LOGIN)
    assert (pulled.complete, reasons(pulled), elsewhere.requests) == (1, ["not-dicom"], [])


def test_a_series_that_breaks_off_halfway_goes_on_one_by_one(pacs, tmp_path):
    series = first_instance(pacs)[1]
    whole = len(pacs.files(f"/dicom-web/studies/{first_instance(pacs)[0]}/series/{series}")[0])
    pacs.misbehave[series] = [lambda handler: handler.multipart(pacs.files(handler.path), cut=2 * whole + 150)]
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, pulled.instances, pulled.failed) == (2, 10, ())
    asked = [path for path, headers in pacs.requests if f"{series}/instances/" in path]
    assert len(asked) == 4 - 2, "the two that came whole are not asked for again"


def test_an_instance_that_always_breaks_off_leaves_its_study_unfinished(pacs, tmp_path):
    key = first_instance(pacs)
    cut = lambda handler: handler.multipart(pacs.files(handler.path)[:1], cut=200)  # noqa: E731
    pacs.misbehave = {key[1]: [cut] * 3, key[2]: [cut] * 3}
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, pulled.incomplete, reasons(pulled)) == (1, 1, ["cut-off"])
    left = list((tmp_path / "out" / "partial" / NAMES.study(key[0])).iterdir())
    assert len(left) == 7
    assert not [path for path in left if path.suffix != ".dcm"], "no half file is left"
    row = json.loads((tmp_path / "out" / "journal" / "failed.jsonl").read_text())
    assert row["study"] == NAMES.study(key[0])
    assert "attempt 3 of 3" in row["evidence"]
    assert run(pacs, tmp_path / "out").instances == 1


def test_an_answer_without_its_closing_delimiter_is_not_whole(pacs, tmp_path):
    def open_ended(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/related; boundary={BOUNDARY}")
        handler.end_headers()
        handler.wfile.write(f"--{BOUNDARY}\r\n\r\n".encode() + pacs.files(handler.path)[0][:-9])
        handler.close_connection = True

    key = first_instance(pacs)
    pacs.misbehave = {key[1]: [open_ended] * 3, key[2]: [open_ended] * 3}
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, reasons(pulled)) == (1, ["cut-off"])


def test_a_server_that_is_busy_is_asked_again(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(503)]
    pacs.misbehave[first_instance(pacs)[1]] = [lambda handler: handler.answer(500)]
    assert run(pacs, tmp_path / "out").complete == 2


def test_retry_after_is_honoured(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(429, Retry_After="1")]
    began = time.monotonic()
    assert run(pacs, tmp_path / "out").complete == 2
    assert time.monotonic() - began >= 1.0


def test_a_server_that_asks_to_wait_too_long_is_left_alone(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(503, Retry_After="3600")]
    with pytest.raises(Rejected, match=r"status-503.*later"):
        run(pacs, tmp_path / "out")
    assert len(pacs.requests) == 1


def test_a_date_in_retry_after_is_understood(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(503, Retry_After="Fri, 31 Dec 2120 23:59:59 GMT")]
    with pytest.raises(Rejected, match="status-503"):
        run(pacs, tmp_path / "out")
    assert len(pacs.requests) == 1


def test_wrong_credentials_stop_at_once(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(401)] * 9
    with pytest.raises(Stopped, match="401") as stopped:
        run(pacs, tmp_path / "out", credentials=LOGIN)
    assert len(pacs.requests) == 1
    assert "s3cret" not in str(stopped.value)


def test_another_instance_than_the_one_asked_for_is_listed_and_not_kept(pacs, tmp_path):
    key, other = first_instance(pacs), list(pacs.instances)[-1]
    wrong = lambda handler: handler.multipart([pacs.instances[other]])  # noqa: E731
    pacs.misbehave = {key[1]: [wrong], key[2]: [wrong]}
    pulled = run(pacs, tmp_path / "out")
    assert (pulled.complete, reasons(pulled)) == (1, ["wrong-instance"])
    assert len(list((tmp_path / "out" / "partial").glob("*/*"))) == 7


@pytest.mark.parametrize("body", [b"", b"<html>please log in</html>", b"\0" * 128 + b"DICM" + b"\xff" * 400])
def test_something_else_than_dicom_is_listed_and_not_kept(pacs, tmp_path, body):
    key = first_instance(pacs)
    pacs.misbehave = {end: [lambda handler: handler.multipart([body])] for end in key[1:]}
    pulled = run(pacs, tmp_path / "out")
    assert pulled.complete == 1
    assert len(pulled.failed) == 1
    assert len(list((tmp_path / "out" / "partial").glob("*/*"))) == 7


def test_a_body_without_end_is_given_up(pacs, tmp_path):
    def endless(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/related; boundary={BOUNDARY}")
        handler.end_headers()
        handler.wfile.write(f"--{BOUNDARY}\r\n\r\n".encode())
        handler.close_connection = True
        while True:
            handler.wfile.write(bytes(1 << 16))

    key = first_instance(pacs)
    pacs.misbehave = {end: [endless] for end in key[1:]}
    limits = Limits(attempts=1, timeout_s=20.0, page=3, instance_bytes=1 << 20)
    pulled = run(pacs, tmp_path / "out", limits=limits)
    # Which of the two bounds is met first depends on how the bytes arrive.
    assert pulled.complete == 1
    assert reasons(pulled) in (["instance-too-large"], ["answer-too-large"])


def test_a_body_that_drips_is_given_up(pacs, tmp_path):
    def dripping(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/related; boundary={BOUNDARY}")
        handler.end_headers()
        handler.close_connection = True
        for _ in range(2000):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    key = first_instance(pacs)
    pacs.misbehave = {end: [dripping] for end in key[1:]}
    began = time.monotonic()
    pulled = run(pacs, tmp_path / "out", limits=Limits(attempts=1, timeout_s=1.0, page=3))
    assert (pulled.complete, reasons(pulled)) == (1, ["too-slow"])
    assert time.monotonic() - began < 60, "it would go on for 100 s"


def test_a_server_that_says_nothing_is_given_up(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: time.sleep(3)]
    with pytest.raises(Rejected, match="timeout"):
        run(pacs, tmp_path / "out", limits=Limits(attempts=1, timeout_s=0.5))


def test_a_server_out_of_reach_stops_the_pull_after_the_attempts(tmp_path):
    with Pacs() as gone:
        pass
    with pytest.raises(Stopped, match="attempt 3 of 3"):
        run(gone, tmp_path / "out")


def test_a_packed_answer_is_refused(pacs, tmp_path):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(200, b"[]", Content_Encoding="gzip")]
    with pytest.raises(Rejected, match="packed-answer"):
        run(pacs, tmp_path / "out")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b"[1]",
        b"[" * 100_000,
        b'[{"0020000D": {"Value": ["../../x"]}}]',
        b'[{"0020000D": 1}]',
        b"\xff",
    ],
)
def test_a_listing_that_is_none_is_refused(pacs, tmp_path, body):
    pacs.misbehave["/studies"] = [lambda handler: handler.answer(200, body)]
    with pytest.raises(Rejected, match="bad-listing"):
        run(pacs, tmp_path / "out")


def test_a_listing_that_is_too_long_is_refused(pacs, tmp_path):
    with pytest.raises(Rejected, match="answer-too-large"):
        run(pacs, tmp_path / "out", limits=Limits(listing_bytes=100))
    with pytest.raises(Rejected, match="listing-too-long"):
        run(pacs, tmp_path / "out", limits=Limits(listed=1, page=1))


@pytest.mark.parametrize(
    "page_of",
    [
        lambda found, limit, offset: found[:limit][offset:],  # as Orthanc 1.10 when a modality is asked for
        lambda found, limit, offset: found[:limit],
        lambda found, limit, offset: found,
        lambda found, limit, offset: found[offset:][: min(limit, 2)],
    ],
    ids=["offset inside the limit", "no offset", "neither", "a lower limit of its own"],
)
def test_nothing_is_lost_where_a_server_pages_in_its_own_way(pacs, tmp_path, page_of):
    pacs.page_of = page_of
    pulled = run(pacs, tmp_path / "out", limits=Limits(page=1))
    assert (pulled.complete, pulled.instances) == (2, 10)


def test_a_server_that_ignores_a_filter_is_refused_before_anything_is_fetched(pacs, tmp_path):
    everything = json.dumps(list(pacs.studies.values())).encode()
    for wanted in (
        Wanted(accessions=("ACC-S1",)),
        Wanted(modality="CT"),
        Wanted(since=dt.date(2021, 1, 1)),
        Wanted(until=dt.date(2019, 1, 1)),
        Wanted(study_uids=(first_instance(pacs)[0],)),
    ):
        pacs.misbehave["/studies"] = [lambda handler: handler.answer(200, everything)]
        with pytest.raises(Rejected, match="filter-ignored"):
            run(pacs, tmp_path / "out", wanted=wanted)
    assert not [1 for _, headers in pacs.requests if "multipart" in headers["Accept"]]


def test_studies_are_found_by_accession_and_by_uid_and_the_missing_are_listed(pacs, tmp_path):
    uid = list(pacs.studies)[1]
    wanted = Wanted(accessions=("ACC-S1", "ACC-9"), study_uids=(uid, "1.2.3"), since=dt.date(2020, 1, 1))
    pulled = run(pacs, tmp_path / "out", wanted=wanted)
    assert (pulled.complete, reasons(pulled)) == (2, ["not-found", "not-found"])
    assert {row.file for row in pulled.failed} == {NAMES.file("ACC-9"), NAMES.file("1.2.3")}


def test_five_failures_in_a_row_give_a_study_up(pacs, tmp_path):
    study, series, _ = first_instance(pacs)
    pacs.misbehave[series] = [lambda handler: handler.answer(404)]
    pacs.misbehave.update({key[2]: [lambda handler: handler.answer(404)] for key in pacs.instances if key[0] == study})
    for key in pacs.instances:
        pacs.misbehave.setdefault(key[1], [lambda handler: handler.answer(404)])
    pulled = run(pacs, tmp_path / "out")
    assert reasons(pulled).count("given-up") == 1
    assert pulled.complete == 1


def test_a_full_disk_stops_the_pull_in_words(pacs, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "flush", full)
    monkeypatch.setattr(atomic, "write_bytes", lambda path, data: None)
    with pytest.raises(Stopped, match="No space left"):
        run(pacs, tmp_path / "out", concurrency=2)
    assert not list((tmp_path / "out" / "complete").iterdir())
    assert not list((tmp_path / "out" / "partial").glob("*/*"))


def test_an_interrupt_keeps_what_is_whole_and_ends_the_waits_of_the_others(pacs, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    waiting = next(key for key in pacs.instances if key[0] != first_instance(pacs)[0])
    pacs.misbehave[waiting[1]] = [lambda handler: handler.answer(503, Retry_After="90")]
    limits = Limits(longest_wait_s=100, page=3)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(pacs, tmp_path / "out", progress=interrupt, concurrency=2, limits=limits)
    assert time.monotonic() - began < 60
    assert [path.name for path in (tmp_path / "out" / "complete").iterdir()] == [NAMES.study(first_instance(pacs)[0])]
    assert run(pacs, tmp_path / "out").complete == 2


def test_nothing_that_identifies_is_said(pacs, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    send_on = [lambda handler: handler.answer(302, b"Doe^Jane", Location="http://127.0.0.2/Doe")]
    key = first_instance(pacs)
    pacs.misbehave = {key[1]: send_on, key[2]: list(send_on)}
    pulled = run(pacs, tmp_path / "out", credentials=LOGIN)
    said = (
        caplog.text
        + "".join(capfd.readouterr())
        + "".join(row.model_dump_json() for row in pulled.failed)
        + repr(LOGIN)
    )
    for secret in ("Doe", "ACC-", "s3cret", LOGIN.authorization, "127.0.0", *itertools.chain(*pacs.instances)):
        assert secret not in said


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://pacs.example/dicom-web", "https"),
        ("http://localhost.evil.example/", "https"),
        ("http://127.0.0.1.evil.example/", "https"),
        ("https://reader:s3cret-pass@pacs.example/", "take them out"),
        ("http://reader@127.0.0.1/", "take them out"),
        ("ftp://pacs.example/", "wanted an address"),
        ("pacs.example", "wanted an address"),
        ("https://pacs.example/?x=1", "wanted an address"),
        ("https://pacs.example:99999/", "wanted an address"),
        ("https:///dicom-web", "wanted an address"),
        ("https://pacs.example\\@evil.example/", "wanted an address|take them out"),
    ],
)
def test_an_origin_that_would_give_credentials_away_is_refused(tmp_path, address, why):
    with pytest.raises(ValueError, match=why) as refused:
        pull(address, tmp_path / "out", wanted=Wanted(modality="MR"), pseudonyms=NAMES, credentials=LOGIN)
    assert "s3cret" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_credentials_go_to_loopback_without_tls():
    for address in ("http://127.0.0.1:8042/dicom-web/", "http://localhost/", "http://[::1]:80/"):
        Origin(address, credentials=LOGIN, limits=QUICK).close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificates, is not installed")
def test_a_certificate_is_verified_and_a_hospital_may_bring_its_own(files, tmp_path):
    for name in ("127.0.0.1", "127.0.0.2"):
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:{name}"
        to = ["-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"]
        subprocess.run([*command.split(), *to], check=True, capture_output=True)
    for name, ca_file in (("127.0.0.1", None), ("127.0.0.2", "127.0.0.2.pem"), ("127.0.0.1", "127.0.0.2.pem")):
        with Pacs(certificate=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key") as unknown:
            with pytest.raises(Stopped, match="certificate is not trusted"):
                run(unknown, tmp_path / "out", credentials=LOGIN, ca_file=ca_file and tmp_path / ca_file)
            assert unknown.requests == []
    with Pacs(certificate=tmp_path / "127.0.0.1.pem", key=tmp_path / "127.0.0.1.key") as own:
        own.add(*files[2])
        assert run(own, tmp_path / "out", credentials=LOGIN, ca_file=tmp_path / "127.0.0.1.pem").complete == 1
    with pytest.raises(ValueError, match="PEM"):
        run(own, tmp_path / "out", ca_file=tmp_path / "127.0.0.1.key")


def test_proxies_and_netrc_of_the_environment_are_not_used(pacs, elsewhere, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login reader password from-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.address)
    assert run(pacs, tmp_path / "out").complete == 2
    assert elsewhere.requests == []
    assert not [1 for _, headers in pacs.requests if "Authorization" in headers]


def test_the_password_and_the_token_are_sent_as_the_standards_say(pacs, tmp_path):
    for credentials, sent in (
        (LOGIN, "Basic cmVhZGVyOnMzY3JldC1wYXNz"),
        (Credentials.of(token="abc.def"), "Bearer abc.def"),
        (None, None),
    ):
        pacs.requests.clear()
        run(pacs, tmp_path / "out", credentials=credentials)
        assert {headers.get("Authorization") for _, headers in pacs.requests} == {sent}


def test_credentials_are_read_from_the_environment_or_a_private_file(tmp_path):
    assert read_credentials(environ={}) is None
    assert read_credentials(environ={"TOMOGLOT_PACS_TOKEN": "t"}) == Credentials.of(token="t")
    file = tmp_path / "login.json"
    file.write_text('{"user": "reader", "password": "s3cret-pass"}')
    file.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        read_credentials(file)
    file.chmod(0o600)
    assert read_credentials(file, environ={"TOMOGLOT_PACS_TOKEN": "t"}) == LOGIN


@pytest.mark.parametrize(
    "content",
    [
        '{"user": "s3cret-pass"}',
        '{"token": "s3cret-pass\\n"}',
        '{"pass": "s3cret-pass"}',
        "s3cret-pass",
        '["s3cret-pass"]',
    ],
)
def test_a_credentials_file_that_is_wrong_is_refused_without_being_shown(tmp_path, content):
    file = tmp_path / "login.json"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(ValueError) as refused:
        read_credentials(file)
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_wants_that_say_too_little_or_too_much_are_refused(tmp_path):
    for wrong in (
        {},
        {"modality": "mr"},
        {"modality": "MR\\CT"},
        {"accessions": ("A*",)},
        {"accessions": ("",)},
        {"study_uids": ("1.2.x",)},
        {"study_uids": ("1.2\n",)},
        {"since": dt.date(2021, 1, 2), "until": dt.date(2021, 1, 1)},
    ):
        with pytest.raises(ValueError):
            Wanted(**wrong)
    listed = tmp_path / "ids.txt"
    listed.write_text("\ufeff# from the registry\n1.2.3\n\n 1.2.4 \n", encoding="utf-8")
    assert read_identifiers(listed) == ("1.2.3", "1.2.4")
    for content in (b"", b"# only this\n", b"\xff\xfe1\x00"):
        listed.write_bytes(content)
        with pytest.raises(ValueError, match="one identifier a line"):
            read_identifiers(listed)


KILLED = """
import sys, time
from pathlib import Path
from tomoglot.studies.dicomweb import Limits, Wanted, pull
from tomoglot.studies.pseudonym import Pseudonyms
pull(sys.argv[1], Path(sys.argv[2]), wanted=Wanted(modality="MR"), pseudonyms=Pseudonyms(b"a key only for tests"))
"""


def test_a_second_pull_into_one_folder_waits_its_turn_and_a_killed_one_is_gone_on_with(pacs, tmp_path):
    let_go = threading.Event()

    def hanging(handler):
        handler.multipart(pacs.files(handler.path), cut=3000)
        let_go.wait(60)

    out, key = tmp_path / "out", first_instance(pacs)
    # Halfway through an instance, which cannot be let go of by the client.
    pacs.misbehave[key[1]] = [hanging]
    child = subprocess.Popen([sys.executable, "-c", KILLED, pacs.address, str(out)])
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("partial/*/.writing-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(out.glob("partial/*/.writing-*")), "it is halfway through an instance"
        with pytest.raises(ValueError, match="another pull"):
            run(pacs, out)
    finally:
        child.kill()
        child.wait()
        let_go.set()
    assert not (out / "complete" / NAMES.study(key[0])).exists()
    pulled = run(pacs, out)
    assert pulled.complete == 2
    assert stored(out / "complete") == in_the_archive(pacs)
    assert list((out / "partial").iterdir()) == []


def split_in_words(body, boundary):
    """The slow definition of a multipart body without a preamble: cut at each delimiter, then at the blank line."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]
    return [piece.split(b"\r\n\r\n", 1)[1] for piece in pieces]


def test_parts_are_their_definition_however_the_bytes_arrive():
    draw = random.Random(0)
    for _ in range(200):
        bodies = [
            draw.randbytes(draw.randrange(60)) + draw.choice([b"", b"\r\n", b"\r\n--", b"\r\n--b-"]) for _ in range(4)
        ]
        body = (
            b"".join(b"--b-1\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in bodies)
            + b"--b-1--\r\n"
        )
        cuts = sorted(draw.sample(range(len(body)), draw.randrange(1, 30)))
        chunks = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
        parts = [b"".join(part) for part in read_parts(chunks, 'multipart/related; boundary="b-1"')]
        assert parts == bodies == split_in_words(body, b"b-1")


def test_a_part_that_nobody_reads_is_skipped():
    body = b"preamble\r\n--b\r\n\r\none\r\n--b \t\r\n\r\ntwo\r\n--b--"
    parts = read_parts([body], "multipart/related; boundary=b")
    next(parts)
    assert b"".join(next(parts)) == b"two"


@pytest.mark.parametrize(
    ("content_type", "body", "error"),
    [
        ("text/html; boundary=b", b"--b--", Rejected),
        ("multipart/related", b"--b--", Rejected),
        ("multipart/related; boundary=" + "b" * 71, b"--b--", Rejected),
        ("multipart/related; boundary=b", b"--bc\r\n\r\nx\r\n--b--", Rejected),
        ("multipart/related; boundary=b", b"x" * 20_000 + b"\r\n--b--", Rejected),
        ("multipart/related; boundary=b", b"--b\r\n" + b"h: v\r\n" * 4000 + b"\r\nx\r\n--b--", Rejected),
        ("multipart/related; boundary=b", b"--b\r\nContent-Type: text/html\r\n\r\nx\r\n--b--", Rejected),
        ("multipart/related; boundary=b", b"--b\r\n\r\nx", EOFError),
        ("multipart/related; boundary=b", b"", EOFError),
    ],
)
def test_an_answer_that_is_not_whole_multipart_is_refused(content_type, body, error):
    with pytest.raises(error):
        for part in read_parts([body], content_type):
            for _ in part:
                pass
