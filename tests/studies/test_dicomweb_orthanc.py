"""A pull from a real server: Orthanc with its DICOMweb plug-in, a login, and made-up studies; on this machine only."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from dicom_series import axis_affine, marked_volume, write_series
from pydicom import dcmread
from pydicom.uid import RLELossless

from tomoglot.studies.dicom.read import read_dicom
from tomoglot.studies.dicomweb import Credentials, Limits, Stopped, Wanted, pull
from tomoglot.studies.pseudonym import Pseudonyms

NAMES = Pseudonyms(b"a key only for tests")
STUDIES, SLICES = 6, 12
PLUGIN = next(
    (
        path
        for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
        for path in Path(folder).glob("libOrthancDicomWeb.so*")
    ),
    None,
)


class Orthanc:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.user, self.password = "reader", secrets.token_hex(8)
        self.root = f"http://127.0.0.1:{port}"
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "index"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": port,
            # Orthanc 1.10 cannot be bound to one address; this makes it refuse whoever is not on this machine.
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {self.user: self.password},
            "DicomServerEnabled": False,
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [shutil.which("Orthanc"), str(folder / "orthanc.json")], stdout=self.log, stderr=subprocess.STDOUT
        )
        self.client = httpx.Client(base_url=self.root, auth=(self.user, self.password), trust_env=False)

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client.get("/dicom-web/studies").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("Orthanc did not start")

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Six studies of twelve slices in a running Orthanc; gives the server and the files."""
    if shutil.which("Orthanc") is None or PLUGIN is None:
        pytest.skip("Orthanc and its DICOMweb plug-in are not installed (Debian: orthanc orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("orthanc")
    files = []
    for number in range(STUDIES):
        header = {"AccessionNumber": f"ACC{number}", "StudyDate": f"2020010{number + 1}", "PatientName": "Doe^Jane"}
        volume = marked_volume((64, 64, SLICES), seed=number)
        files += write_series(
            folder / str(number), volume, axis_affine(), study=f"S{number}", patient=f"P{number}", header=header
        )
    packed = dcmread(files[0])
    packed.compress(RLELossless, generate_instance_uid=False)
    packed.save_as(files[0])
    server = Orthanc(folder)
    try:
        server.wait()
        for file in files:
            assert server.client.post("/instances", content=file.read_bytes()).status_code == 200
        yield server, files
    finally:
        server.stop()


def run(server, out, *, password=None, **rest):
    login = Credentials.of(user=server.user, password=password or server.password)
    settings = {"wanted": Wanted(modality="MR"), "limits": Limits(attempts=2, first_wait_s=0.05, page=4)} | rest
    return pull(f"{server.root}/dicom-web", out, pseudonyms=NAMES, credentials=login, **settings)


def digests(files):
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def test_every_study_of_a_real_server_comes_as_it_was_sent_there(archive, tmp_path):
    server, files = archive
    pulled = run(server, tmp_path / "out")
    assert (pulled.complete, pulled.incomplete, pulled.failed) == (STUDIES, 0, ())
    assert pulled.instances == STUDIES * SLICES
    # The compressed one too: it is not decoded on its way.
    assert digests((tmp_path / "out" / "complete").glob("*/*")) == digests(files)
    sources = read_dicom(tmp_path / "out" / "complete", pseudonyms=NAMES)
    assert {study.study for study in sources.studies} == {
        path.name for path in (tmp_path / "out" / "complete").iterdir()
    }
    assert sources.rejected == []
    again = run(server, tmp_path / "out")
    assert (again.complete, again.instances) == (STUDIES, 0)


def test_dates_accessions_and_modalities_choose_on_a_real_server(archive, tmp_path):
    server, files = archive
    header = dcmread(files[0], stop_before_pixels=True)
    day = header.StudyDate
    assert day == "20200101"
    first_two = Wanted(until=dt.date(2020, 1, 2))
    assert run(server, tmp_path / "dates", wanted=first_two).complete == 2
    pulled = run(
        server, tmp_path / "named", wanted=Wanted(accessions=("ACC3", "ACC77"), study_uids=(header.StudyInstanceUID,))
    )
    assert (pulled.complete, [row.reason for row in pulled.failed]) == (2, ["not-found"])
    assert run(server, tmp_path / "none", wanted=Wanted(modality="CT")).complete == 0


def test_a_real_server_refuses_a_wrong_password_once(archive, tmp_path):
    server, _ = archive
    with pytest.raises(Stopped, match="401"):
        run(server, tmp_path / "out", password="wrong")
    assert not list((tmp_path / "out" / "complete").iterdir())


KILLED = """
import os, sys
from pathlib import Path
from tomoglot.studies.dicom.read import read_dicom
from tomoglot.studies.dicomweb import Wanted, pull, read_credentials
from tomoglot.studies.pseudonym import Pseudonyms
key = Pseudonyms(b"a key only for tests")
pull(sys.argv[1], Path(sys.argv[2]), wanted=Wanted(modality="MR"), pseudonyms=key, credentials=read_credentials())
"""


def test_a_pull_that_is_killed_halfway_marks_nothing_half_and_is_gone_on_with(archive, tmp_path):
    server, files = archive
    out = tmp_path / "out"
    login = {"TOMOGLOT_PACS_USER": server.user, "TOMOGLOT_PACS_PASSWORD": server.password}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, f"{server.root}/dicom-web", str(out)], env={**os.environ, **login}
    )
    deadline = time.monotonic() + 60
    while child.poll() is None and not list(out.glob("partial/*/*.dcm")) and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    child.wait()
    assert child.returncode == -9, "it was still at work"
    kept = list(out.glob("complete/*"))
    assert all(len(list(study.iterdir())) == SLICES for study in kept)
    assert len(kept) < STUDIES
    here = len(list(out.glob("*/*/*.dcm")))
    pulled = run(server, out)
    assert (pulled.complete, pulled.failed) == (STUDIES, ())
    # A file that was in place, but not yet in the journal, may be fetched once more, by each of two workers.
    assert STUDIES * SLICES - here <= pulled.instances <= STUDIES * SLICES - here + 2
    assert digests(out.glob("complete/*/*")) == digests(files)
