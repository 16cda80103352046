"""Raw DICOM to studies: who, what, which; everything else in a row with its reason, and nobody's name anywhere."""

import zipfile
from pathlib import Path

import numpy as np
from dicom_mutants import mutate, originals
from dicom_series import axis_affine, marked_volume, save, uid, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import BasicTextSRStorage

from tomoglot.studies.curate import examine
from tomoglot.studies.dicom.read import read_dicom
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.report import read_report
from tomoglot.studies.report_table import ReportText, ReportTexts
from tomoglot.studies.source import Sources

VOXELS, AFFINE = marked_volume((16, 14, 6)), axis_affine()
KEY = Pseudonyms(b"a key of sixteen bytes or more")
T1 = {"SeriesDescription": "T1 SE", "RepetitionTime": 500, "EchoTime": 10}
T2 = {
    "SeriesDescription": "T2 TSE",
    "RepetitionTime": 5000,
    "EchoTime": 100,
    "SequenceVariant": "SK",
    "EchoTrainLength": 15,
}


def read(source: Path, **options) -> Sources:
    return read_dicom(source, pseudonyms=KEY, **options)


def reasons(sources: Sources) -> list[str]:
    return sorted(row.reason for row in sources.rejected)


def sequences(sources: Sources) -> list[list[str]]:
    return [[series.sequence for series in study.series] for study in sources.studies]


def write_report(path: Path, words: str, *, patient: str = "P1", study: str = "S1") -> None:
    dataset, text, title = Dataset(), Dataset(), Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "121071", "DCM", "Finding"
    text.RelationshipType, text.ValueType, text.TextValue = "CONTAINS", "TEXT", words
    text.ConceptNameCodeSequence = Items([title])
    dataset.SOPClassUID, dataset.SOPInstanceUID = BasicTextSRStorage, uid(patient, study, words)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(patient, study), uid(patient, study, "report")
    dataset.PatientID, dataset.PatientName, dataset.Modality = patient, f"Name^{patient}", "SR"
    dataset.ValueType, dataset.ContentSequence = "CONTAINER", Items([text])
    save(dataset, path)


def test_a_folder_of_two_studies_becomes_two_studies_of_named_series(tmp_path):
    write_series(tmp_path / "a", VOXELS, AFFINE, series="1", header=T1, shuffle=3)
    write_series(tmp_path / "a", VOXELS, AFFINE, series="2", header=T2, prefix="x")
    write_series(tmp_path / "b", VOXELS, AFFINE, patient="P2", study="S2", header=T1)
    told: list[tuple[int, int]] = []
    sources = read(tmp_path, progress=lambda *numbers: told.append(numbers))
    assert told[-1] == (18, 18)
    assert not sources.rejected and sorted(sequences(sources)) == [["t1w"], ["t1w", "t2w"]]
    study = next(study for study in sources.studies if len(study.series) == 2)
    assert (study.subject, study.study) == (KEY.subject("P1"), KEY.study(uid("P1", "S1")))
    found = examine(study)
    assert not found.rejected
    np.testing.assert_array_equal(found.volumes["t1w"].voxels, VOXELS)
    np.testing.assert_allclose(found.volumes["t1w"].affine, AFFINE, atol=1e-6)


def test_workers_and_a_zip_file_give_what_the_folder_gives(tmp_path):
    paths = write_series(tmp_path / "in", VOXELS, AFFINE, header=T1)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    here, zipped = read(tmp_path / "in"), read(tmp_path / "in.zip")
    assert read(tmp_path / "in", workers=2) == here
    assert sequences(zipped) == sequences(here) == [["t1w"]]
    np.testing.assert_array_equal(examine(zipped.studies[0]).volumes["t1w"].voxels, VOXELS)


def test_every_bad_file_has_its_row_and_the_good_series_stays(tmp_path):
    good = write_series(tmp_path / "good", VOXELS, AFFINE, header=T1)
    (tmp_path / "cut.dcm").write_bytes(good[0].read_bytes()[:500])
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    (tmp_path / "notes.txt").write_text("notes")

    def lose_one(k, _dataset):
        return k != 2

    write_series(tmp_path / "gap", VOXELS, AFFINE, series="2", header=T2, edit=lose_one)
    sources = read(tmp_path)
    assert sequences(sources) == [["t1w"]]
    files = [row.file for row in sources.rejected]
    assert {row.reason for row in sources.rejected} >= {"truncated-header", "not-dicom"}
    assert KEY.file("cut.dcm") in files and KEY.file("junk.dcm") in files
    gap = [row for row in sources.rejected if row.study]
    assert len(gap) == 1 and gap[0].evidence.startswith("5 images: ")


def test_a_study_without_a_usable_series_is_rows_and_no_study(tmp_path):
    def all_in_one_place(_k, dataset):
        dataset.ImagePositionPatient = ["0", "0", "0"]

    write_series(tmp_path, VOXELS, AFFINE, edit=all_in_one_place)
    sources = read(tmp_path)
    assert not sources.studies and "no-usable-series" in reasons(sources) and len(sources.rejected) == 2


def test_of_two_volumes_of_one_name_the_better_is_kept_and_the_other_listed(tmp_path):
    few = marked_volume((16, 14, 4), seed=1)
    write_series(tmp_path / "few", few, AFFINE, series="1", header=T1)
    write_series(tmp_path / "many", VOXELS, AFFINE, series="2", header=T1)
    sources = read(tmp_path)
    assert sequences(sources) == [["t1w"]] and len(sources.studies[0].series[0].frames) == 6
    (row,) = sources.rejected
    assert (row.reason, row.sequence) == ("another-t1w", "t1w") and "16 x 14 x 6" in row.evidence


def test_an_unknown_sequence_is_not_guessed(tmp_path):
    nothing = {name: None for name in ("SeriesDescription", "RepetitionTime", "EchoTime", "FlipAngle")}
    write_series(tmp_path, VOXELS, AFFINE, header=nothing)
    assert reasons(read(tmp_path)) == ["no-usable-series", "unknown-sequence"]


def test_one_study_of_two_patients_is_refused(tmp_path):
    write_series(tmp_path / "a", VOXELS, AFFINE, header=T1)
    other = {"StudyInstanceUID": uid("P1", "S1"), "SeriesInstanceUID": "1.2.9", "PatientID": "P2"}
    write_series(tmp_path / "b", VOXELS, AFFINE, series="2", header=T2 | other)
    sources = read(tmp_path)
    assert not sources.studies and reasons(sources) == ["two-subjects"]


def test_without_a_patient_id_studies_are_refused_unless_each_is_said_to_be_another_person(tmp_path):
    for name in ("S1", "S2"):
        write_series(tmp_path / name, VOXELS, AFFINE, study=name, header=T1 | {"PatientID": ""})
    sources = read(tmp_path)
    assert not sources.studies and reasons(sources) == ["no-patient-id"] * 2
    said = read(tmp_path, subject_from_study=True)
    assert not said.rejected and len({study.subject for study in said.studies}) == 2


def test_a_structured_report_goes_to_its_study_without_the_name_in_it(tmp_path):
    write_series(tmp_path / "im", VOXELS, AFFINE, patient="PAT40417", header=T1 | {"PatientName": "Quux^Ada"})
    write_report(tmp_path / "report.dcm", "Ada Quux, PAT40417: a small infarct.", patient="PAT40417")
    write_report(tmp_path / "stray.dcm", "Nobody's.", study="S9")
    sources = read(tmp_path)
    assert reasons(sources) == ["report-unmatched"]
    report = sources.studies[0].report
    assert "infarct" in report.text and "Quux" not in report.text and "PAT40417" not in report.text


def test_a_table_of_reports_is_joined_by_what_only_the_header_knows(tmp_path):
    write_series(tmp_path, VOXELS, AFFINE, header=T1 | {"PatientID": "PAT40417"})
    texts = ReportTexts(
        reports=(
            ReportText(report=read_report("IMPRESSION: normal, PAT40417."), accession="ACCS1"),
            ReportText(report=read_report("IMPRESSION: other."), accession="ACC-ELSEWHERE"),
        )
    )
    sources = read(tmp_path, reports=texts)
    report = sources.studies[0].report
    assert "normal" in report.impression and "PAT40417" not in f"{report.text}{report.impression}"
    assert reasons(sources) == ["report-unmatched"]


def test_two_different_structured_reports_are_both_left_out(tmp_path):
    write_series(tmp_path / "im", VOXELS, AFFINE, header=T1)
    write_report(tmp_path / "a.dcm", "A small infarct.")
    write_report(tmp_path / "b.dcm", "No infarct.")
    sources = read(tmp_path)
    assert sources.studies[0].report is None and reasons(sources) == ["report-conflict"]


def test_no_identity_is_in_the_studies_or_the_rows(tmp_path):
    canary = "CANARY"
    header = T1 | {"PatientID": canary, "PatientName": canary, "AccessionNumber": canary, "StudyID": canary}
    folder = tmp_path / f"{canary} folder"
    write_series(folder, VOXELS, AFFINE, header=header)
    bad = header | {"SeriesDescription": canary, "RepetitionTime": 50000, "EchoTime": 1}
    write_series(folder / "b", VOXELS, AFFINE, series="2", header=bad, prefix=canary)
    (folder / f"{canary}.dcm").write_bytes(b"junk" * 100)
    write_report(folder / "sr.dcm", "nothing", patient=canary)
    sources = read(folder)
    assert sources.rejected
    for row in sources.rejected:
        assert canary not in row.model_dump_json()
    for study in sources.studies:
        assert canary not in f"{study.subject}{study.study}{study.report}"
        assert all(canary not in f"{series.sequence}{series.alias}{series.path}" for series in study.series)


def test_mutants_beside_good_studies_cost_none_of_them(tmp_path):
    files = originals(most_bytes=100_000)
    (tmp_path / "bad").mkdir()
    for number in range(150):
        (tmp_path / "bad" / f"{number:04d}.dcm").write_bytes(mutate(files, seed=10_000 + number))
    for number in range(3):
        write_series(tmp_path / f"good{number}", VOXELS, AFFINE, patient=f"G{number}", header=T1)
    sources = read(tmp_path)
    good = {KEY.subject(f"G{number}") for number in range(3)}
    examined = [examine(study) for study in sources.studies]
    assert {one.study.subject for one in examined if one.volumes} >= good
    listed = len(sources.rejected) + sum(len(study.series) for study in sources.studies if study.subject not in good)
    assert listed >= 100
