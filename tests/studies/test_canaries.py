"""Canaries: values planted wherever an identity may stand are in no file, name, row, log or message that we write."""

import logging
import struct
from pathlib import Path

import duckdb
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import axis_affine, marked_volume, write_enhanced, write_series
from PIL import Image, ImageDraw, ImageFont
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tomoglot.store.plan import Plan
from tomoglot.store.writer import write_store
from tomoglot.studies.deidentify.folder import Deidentified, deidentify_folder
from tomoglot.studies.deidentify.header import quiet
from tomoglot.studies.deidentify.profile import Options, attributes
from tomoglot.studies.dicom.pixels import read_volume
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.source import read_source

WORD = "Canary"
DATE = "19421103"
NUMBER = 918273.625
# Ten digits: six of them stood by chance in the random digits of a made-up UID, once in some hundred runs.
DIGITS = "1928374655"
# What the writer of series sets itself and a reader needs: their own values are the canaries.
NEEDED = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00100010, 0x00100020, 0x00080060}


def planted(tag: int) -> DataElement | None:
    """An element that holds a canary in its own value representation."""
    # The table knows attributes that are newer than pydicom's dictionary.
    vr = dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "LO"
    value = {
        "DA": DATE, "DT": DATE + "010203", "TM": "010203", "AS": "097Y", "DS": DIGITS + ".6", "IS": DIGITS,
        "UI": f"1.2.826.0.{DIGITS}.{tag}", "FD": NUMBER, "FL": NUMBER, "UL": int(DIGITS), "SL": -int(DIGITS),
        "US": 60001, "SS": -20001, "OB": b"Canary", "OW": b"Canary", "UN": b"Canary", "OF": b"CanaryCa",
        "OD": b"CanaryCa", "OL": b"CanaryCa",
        "CS": "CANARY", "UR": "http://canary.example.org", "AT": 0x00189182, "SQ": Sequence([nested()]),
    }.get(vr, f"{WORD}{tag:x}")  # fmt: skip
    return DataElement(tag, vr, value)


def nested() -> Dataset:
    item = Dataset()
    item.PatientName = "Canary^Nested"
    item.add_new(0x0040A160, "UT", "Canary text")
    item.add_new(0x00091001, "LO", "CanaryPrivate")
    item.add_new(0x00081032, "SQ", Sequence([Dataset()]))
    item[0x00081032].value[0].CodeMeaning = "read by Canary"
    return item


def tags() -> list[int]:
    concrete = [
        int(tag.replace("x", "0") if tag[2:4] != "xx" else tag[:2] + "02" + tag[4:].replace("x", "0"), 16)
        for tag in attributes()
    ]
    return [tag for tag in concrete if tag >> 16 >= 8 and tag not in NEEDED and tag != 0x50020000]


def plant(_: int, dataset: Dataset) -> None:
    with quiet():
        for tag in tags():
            dataset[tag] = planted(tag)
        dataset.PatientName = "Canary^Bird^^Dr=カナリア^鳥=Canary^Kana"
        dataset.SpecificCharacterSet = ["ISO_IR 192"]
        dataset.add_new(0x00091010, "LO", "Canary private")
        dataset.add_new(0x00290010, "LO", "CanaryCreator")
        dataset.add_new(0x00291010, "OB", b"Canary CSA header")
        dataset.add_new(0x00291020, "SQ", Sequence([nested()]))
        dataset.add_new(0x0008FFF1, "LO", "CanaryUnknown")
        dataset.ManufacturerModelName = "Scanner of Canary"
        dataset.SharedFunctionalGroupsSequence = Sequence([nested()])
        everywhere = Dataset()
        for tag in tags():
            everywhere[tag] = planted(tag)
        dataset.SourceIrradiationEventSequence = Sequence([everywhere])


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A folder of everything that is read, a canary in each place."""
    source = tmp_path / "Canary_Hospital"
    voxels, affine = marked_volume((32, 40, 3)), axis_affine()
    same = {"patient": "CanaryID", "study": "CanaryStudy"}
    paths = write_series(source / "Canary Bird", voxels, affine, **same, prefix="Canary", edit=plant)
    for path in paths:
        # The preamble, the file meta and what trails the data set.
        content = bytearray(path.read_bytes())
        content[:11] = b"Canary_here"
        path.write_bytes(bytes(content))
    write_enhanced(source / "enhanced_canary.dcm", voxels, affine, **same)
    (source / "CanaryID.txt").write_text("Patient: Canary Bird, CanaryID. Canary's brain is normal. Seen 3.11.1942.")
    (source / "canary_unmatched.txt").write_text("Canary")
    (source / "canary.weird").write_bytes(b"Canary")
    (source / "CANARY_broken.dcm").write_bytes(paths[0].read_bytes()[:900])
    image = nibabel.Nifti1Image(voxels.astype(np.int16), affine)
    image.header["descrip"], image.header["db_name"] = b"Canary", b"Canary"
    image.header["aux_file"], image.header["intent_name"] = b"Canary", b"Canary"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Canary"))
    image.to_filename(source / "canary_t1.nii.gz")
    return source


def traces() -> list[bytes]:
    """Every form in which a canary would be seen, in files of any encoding."""
    words = [
        b"canary",
        "カナリア".encode(),
        DIGITS.encode(),
        str(NUMBER).encode(),
        DATE.encode(),
        b"c\0a\0n\0a\0r\0y\0",
    ]
    packed = [("<d", NUMBER), ("<f", NUMBER), ("<I", int(DIGITS)), ("<i", -int(DIGITS))]
    return words + [struct.pack(form, value) for form, value in packed]


def assert_silent(out: Path, said: str) -> None:
    for path in [out, *out.rglob("*")]:
        relative = str(path.relative_to(out.parent)).lower()
        assert "canary" not in relative
        content = path.read_bytes().lower() if path.is_file() else b""
        if path.suffix == ".parquet":
            # Its pages may be packed.
            content += repr(duckdb.read_parquet(str(path)).fetchall()).lower().encode()
        if path.suffix == ".gz":
            content += nibabel.load(path).header.binaryblock.lower()
        for trace in traces():
            assert trace not in content, f"{trace!r} is left in {path.suffix}"
    for trace in traces():
        assert trace not in said.lower().encode()


def run(source: Path, out: Path, **options: object) -> Deidentified:
    return deidentify_folder(source, out, key=source.parent / "key", **options)


@pytest.mark.parametrize("dates", ["shifted", "removed"])
def test_no_canary_is_left_in_what_is_written_or_said(cohort, tmp_path, caplog, capfd, dates) -> None:
    caplog.set_level(logging.DEBUG)
    done = run(cohort, tmp_path / "out", options=Options(dates=dates))
    said = caplog.text + "".join(capfd.readouterr()) + repr(done)
    assert_silent(tmp_path / "out", said)
    assert done.written == 3 + 1 + 1 + 1, [(row.reason, row.evidence) for row in done.rejected]
    assert {"report-unmatched", "not-dicom"} <= {row.reason for row in done.rejected}


def test_with_descriptors_cleaned_no_name_number_or_date_of_the_header_is_left(cohort, tmp_path) -> None:
    run(cohort, tmp_path / "out", options=Options.retaining(["descriptors"]))
    for path in (tmp_path / "out").rglob("*.dcm"):
        content = path.read_bytes()
        assert not [word for word in (b"CanaryID", b"Canary Bird", b"Canary^", DATE.encode()) if word in content]


def test_a_canary_that_is_left_would_be_seen(cohort, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tomoglot.studies.deidentify.header.action_for", lambda tag, vr, options: "K")
    run(cohort, tmp_path / "out")
    with pytest.raises(AssertionError, match="is left"):
        assert_silent(tmp_path / "out", "")


def test_reports_follow_their_study_and_lose_the_names_of_its_header(cohort, tmp_path) -> None:
    run(cohort, tmp_path / "out")
    report = next((tmp_path / "out" / "reports").iterdir())
    subject, study = report.stem.split("_")
    assert (tmp_path / "out" / subject / study).is_dir()
    assert report.read_text() == "Patient: [name], [id]. [name]'s brain is normal. Seen [date]."


def test_a_second_run_writes_nothing_twice_and_another_key_is_refused(cohort, tmp_path) -> None:
    first = run(cohort, tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    second = run(cohort, tmp_path / "out")
    assert second.skipped == len(kept) == 4
    assert second.rejected == first.rejected
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    with pytest.raises(ValueError, match="another key or other options"):
        run(cohort, tmp_path / "out", options=Options(dates="removed"))
    with pytest.raises(ValueError, match="another key"):
        deidentify_folder(cohort, tmp_path / "out", key=tmp_path / "other")


def test_two_workers_write_what_one_writes(cohort, tmp_path) -> None:
    one, two = run(cohort, tmp_path / "one"), run(cohort, tmp_path / "two", workers=2)
    assert (one.written, set(one.rejected)) == (two.written, set(two.rejected))
    written = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.dcm")}
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    assert written[0] == written[1]


def test_a_mapping_is_written_only_on_request_and_never_into_the_output(cohort, tmp_path) -> None:
    mapping = tmp_path / "private" / "mapping.csv"
    run(cohort, tmp_path / "out", mapping=mapping)
    text = mapping.read_text()
    assert mapping.stat().st_mode & 0o077 == 0
    assert f"subject,{Pseudonyms.from_file(tmp_path / 'key').subject('CanaryID')},CanaryID" in text
    aliases = {path.stem for path in (tmp_path / "out").rglob("*.dcm")}
    assert aliases <= {line.split(",")[1] for line in text.splitlines()}
    for name in ("mapping", "key"):
        inside = {"key": tmp_path / "key", "mapping": None} | {name: tmp_path / "out" / "x"}
        with pytest.raises(ValueError, match=f"the {name} file must not lie"):
            deidentify_folder(cohort, tmp_path / "out", **inside)
    with pytest.raises(ValueError, match="must not lie in the source"):
        run(cohort, cohort / "out")


def test_burnt_in_text_keeps_a_file_from_being_written(tmp_path) -> None:
    source = tmp_path / "source"
    blank = np.zeros((96, 96, 1), np.int16)
    drawn = Image.new("L", (96, 96))
    ImageDraw.Draw(drawn).text((4, 40), "DOE JANE", fill=255, font=ImageFont.load_default(size=16))
    blank[20:70, 20:30, 0] = 90
    letters = blank.copy()
    letters[:, :, 0] = np.maximum(letters[:, :, 0], np.asarray(drawn, np.int16).T * 4)
    write_series(source / "a", blank, axis_affine(), series="1", header={"BurnedInAnnotation": "YES"})
    write_series(source / "b", letters, axis_affine(), series="2")
    write_series(source / "c", blank, axis_affine(), series="3", header={"ConversionType": "WSD"})
    write_series(source / "d", blank, axis_affine(), series="4")
    done = run(source, tmp_path / "out")
    assert (done.written, [row.reason for row in done.rejected]) == (1, ["burnt-in-text"] * 3)
    assert {row.evidence.split(":")[0] for row in done.rejected} >= {"the header says that text is burnt in"}
    assert run(source, tmp_path / "all", options=Options(look_at_pixels=False)).written == 2


def test_a_series_reads_the_same_after_it_as_before(tmp_path) -> None:
    write_series(tmp_path / "source", marked_volume(), axis_affine(), slope=2.0, intercept=-10.0, modality="CT")
    run(tmp_path / "source", tmp_path / "out")
    found = [read_source(tmp_path / name, pseudonyms=Pseudonyms(b"k" * 32)).studies for name in ("source", "out")]
    before, after = (read_volume(studies[0].series[0].frames) for studies in found)
    np.testing.assert_array_equal(before.voxels, after.voxels)
    np.testing.assert_array_equal(before.affine, after.affine)


def test_a_name_among_the_pixels_keeps_a_file_from_being_written(tmp_path) -> None:
    def hide(_: int, dataset: Dataset) -> None:
        dataset.PixelData = b"comment: CANARYID" + dataset.PixelData[17:]

    write_series(tmp_path / "source", marked_volume(), axis_affine(), patient="CanaryID", edit=hide)
    done = run(tmp_path / "source", tmp_path / "out", options=Options(look_at_pixels=False))
    assert done.written == 0
    assert {row.reason for row in done.rejected} == {"identity-left"}


def test_a_hostile_folder_is_survived_and_listed(tmp_path) -> None:
    source = tmp_path / "source"
    write_series(source, marked_volume(), axis_affine())
    good = next(source.iterdir()).read_bytes()
    for number in range(20):
        broken = bytearray(good)
        broken[140 + number * 40] ^= 0xFF
        (source / f"broken{number}.dcm").write_bytes(bytes(broken))
    done = run(source, tmp_path / "out", workers=1)
    assert done.written + len(done.rejected) == 28
    assert done.written >= 8
    for path in (tmp_path / "out").rglob("*.dcm"):
        assert pydicom.dcmread(path).PatientIdentityRemoved == "YES"


def test_no_canary_reaches_a_store_made_from_raw_dicom(cohort, tmp_path, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    pseudonyms = Pseudonyms.from_file(tmp_path / "key")
    sources = read_source(cohort / "Canary Bird", pseudonyms=pseudonyms, reports=report_folder(cohort))
    assert len(sources.studies) == 1, [(row.reason, row.evidence) for row in sources.rejected]
    out = tmp_path / "store"
    write_store(sources, out, Plan(), split_fractions={"train": 1.0})
    rows = repr(sources.rejected) + repr(sources.studies[0].report) + sources.studies[0].subject
    assert_silent(out, caplog.text + "".join(capfd.readouterr()) + rows)
    assert sources.studies[0].report is not None


def test_no_canary_of_a_nifti_header_reaches_a_store_and_the_users_own_names_do(cohort, tmp_path, capfd) -> None:
    (tmp_path / "t1.nii.gz").write_bytes((cohort / "canary_t1.nii.gz").read_bytes())
    (tmp_path / "studies.csv").write_text("subject,study,sequence,path\nmine01,first,t1w,t1.nii.gz\n")
    write_store(read_source(tmp_path / "studies.csv"), tmp_path / "store", Plan(), split_fractions={"train": 1.0})
    assert_silent(tmp_path / "store", "".join(capfd.readouterr()))
    assert b"mine01" in (tmp_path / "store" / "catalogue.parquet").read_bytes()


def report_folder(cohort: Path) -> Path:
    folder = cohort.parent / "reports"
    folder.mkdir()
    (folder / "CanaryID.txt").write_text("Dictated by Dr. Canary. Canary Bird, CanaryID: normal. Seen 3.11.1942.")
    (folder / "Canary_unmatched.txt").write_text("FINDINGS: Canary.")
    return folder
