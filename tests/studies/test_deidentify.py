"""Headers after the profile: every attribute handled, nothing left of what was there, and the same people the same."""

import datetime
import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from confidentiality_table import table
from dicom_series import axis_affine, marked_volume, write_series
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tomoglot.studies.deidentify.header import deidentify_dataset, identities_of, quiet
from tomoglot.studies.deidentify.profile import RETAINABLE, Options, action_for, attributes
from tomoglot.studies.pseudonym import Pseudonyms
from tomoglot.studies.study import Rejected

HERE = Pseudonyms(bytes(range(32)))


def dataset(**values: object) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4.1"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3.4.2", "1.2.3.4.3"
    made.PatientID, made.PatientName = "ID4711", "Doe^Jane"
    with quiet():
        for keyword, value in values.items():
            setattr(made, keyword, value)
    return made


def cleaned(options: Options | None = None, **values: object) -> Dataset:
    return deidentify_dataset(dataset(**values), HERE, options or Options())


def test_the_table_has_the_size_and_the_lines_of_the_standard() -> None:
    assert len(attributes()) == 655
    basic = Options(dates="removed")
    lines = {"00080050": "Z", "00100010": "Z", "00100020": "D", "00100030": "Z", "00081030": "X", "0020000d": "U"}
    assert {tag: action_for(int(tag, 16), "LO", basic) for tag in lines} == lines
    assert action_for(0x60023000, "OW", basic) == action_for(0x50100030, "CS", basic) == "X"


def test_no_combined_action_is_resolved_to_leaving_a_value() -> None:
    found = {action_for(int(tag.replace("x", "0"), 16), "LO", Options(dates="removed")) for tag in attributes()}
    assert found == {"X", "Z", "D", "U"}


def test_the_generator_reads_both_wheels(tmp_path: Path) -> None:
    newer, older = tmp_path / "a.whl", tmp_path / "b.whl"
    with zipfile.ZipFile(newer, "w") as archive:
        archive.writestr(
            "x/dicomfields_2026c.py", "X_TAGS = [(0x60, 0x4000, 0xFF00, 0xFFFF)]\nX_Z_TAGS = [(0x8, 0x22)]\n"
        )
    rows = [
        {"id": "00080022", "basicProfile": "X/Z", "rtnLongModifDatesOpt": "C"},
        {"id": "00990099", "rtnUIDsOpt": "K"},
    ]
    with zipfile.ZipFile(older, "w") as archive:
        archive.writestr("y/confidentiality_profile_attributes.json", json.dumps(rows))
    made = table(newer, older)
    assert made["basic"] == {"00080022": "X/Z", "00xx4000": "X"}
    assert made["options"] == {"00080022": {"modified-dates": "C"}}


def test_codes_mean_what_the_standard_says() -> None:
    from pydicom.sr.codedict import codes

    known = {code.value: code.meaning for code in (getattr(codes.cid7050, name) for name in codes.cid7050.dir())}
    for value, meaning in [*RETAINABLE.values(), *Options().codes]:
        assert known[value].casefold().startswith(meaning.casefold().removesuffix(" option")), (value, known[value])


def test_what_was_done_is_recorded() -> None:
    clean = cleaned(Options.retaining(["uids", "device"]))
    codes = {item.CodeValue: item.CodingSchemeDesignator for item in clean.DeidentificationMethodCodeSequence}
    assert codes == dict.fromkeys(("113100", "113107", "113109", "113110"), "DCM")
    assert clean.PatientIdentityRemoved == "YES"
    assert clean.LongitudinalTemporalInformationModified == "MODIFIED"
    assert cleaned(Options(dates="removed")).LongitudinalTemporalInformationModified == "REMOVED"
    assert cleaned(Options.retaining(["full-dates"])).LongitudinalTemporalInformationModified == "UNMODIFIED"


@pytest.mark.parametrize("name", ["safe-private", "graphics", "pixels", "faces", "everything"])
def test_what_cannot_be_kept_safely_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Options.retaining([name])


def test_the_original_is_not_touched() -> None:
    original = dataset(StudyDate="20200102", AccessionNumber="A1")
    before = original.to_json()
    clean = deidentify_dataset(original, HERE, Options())
    assert original.to_json() == before
    assert clean.to_json() != before


def test_a_subject_is_one_subject_in_all_files_and_a_uid_one_uid() -> None:
    one, two = cleaned(FrameOfReferenceUID="1.2.9"), cleaned(PatientID=" id4711 ", FrameOfReferenceUID="1.2.9")
    assert one.PatientID == one.PatientName == two.PatientID == HERE.subject("ID4711")
    assert one.StudyInstanceUID == HERE.uid("1.2.3.4.2")
    assert one.FrameOfReferenceUID == two.FrameOfReferenceUID == HERE.uid("1.2.9")
    assert one.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4", "a UID of the standard's own is no identity"


def test_without_a_patient_id_the_study_is_the_subject_only_on_request() -> None:
    for missing in ("", " "):
        with pytest.raises(Rejected, match="no-patient-id"):
            cleaned(PatientID=missing)
    assert cleaned(Options(subject_from_study=True), PatientID="").PatientID == HERE.subject("1.2.3.4.2")


def test_dates_of_a_subject_move_by_one_offset_and_times_stay() -> None:
    clean = cleaned(
        StudyDate="20200301", SeriesDate="2020.03.04", AcquisitionDateTime="20200302235959.5+0100", StudyTime="101112"
    )
    start = datetime.date(2020, 3, 1) + datetime.timedelta(days=HERE.days("ID4711"))
    assert clean.StudyDate == start.strftime("%Y%m%d")
    assert clean.SeriesDate == (start + datetime.timedelta(days=3)).strftime("%Y%m%d")
    assert clean.AcquisitionDateTime == (start + datetime.timedelta(days=1)).strftime("%Y%m%d") + "235959.5+0100"
    assert clean.StudyTime == "101112"


def test_a_birth_date_goes_even_where_dates_are_kept() -> None:
    for options in (Options(), Options.retaining(["full-dates"])):
        assert not cleaned(options, PatientBirthDate="19421103").PatientBirthDate


@pytest.mark.parametrize("date", ["Doe^Jane", "2020", "99999999", "20200301-20200401", "", "00010101"])
def test_a_strange_date_never_stays(date: str) -> None:
    original = dataset()
    original.add(DataElement(0x00080020, "DA", None))
    original[0x00080020]._value = date
    value = str(deidentify_dataset(original, HERE, Options()).get("StudyDate") or "")
    assert date not in value or not date


def test_dates_are_kept_or_removed_on_request() -> None:
    assert cleaned(Options.retaining(["full-dates"]), StudyDate="20200301").StudyDate == "20200301"
    gone = cleaned(Options(dates="removed"), StudyDate="20200301", StudyTime="101112", ContentTime="101112")
    assert not gone.StudyDate
    assert not gone.StudyTime
    assert gone.ContentTime == "000000"


def test_what_is_no_time_zone_or_time_does_not_stay_in_its_place() -> None:
    assert not cleaned(TimezoneOffsetFromUTC="Jane").TimezoneOffsetFromUTC
    assert cleaned(TimezoneOffsetFromUTC="+0100").TimezoneOffsetFromUTC == "+0100"
    assert not cleaned(StudyTime="Jane Doe").StudyTime


def test_private_unknown_and_overlay_attributes_go() -> None:
    original = dataset()
    original.add_new(0x00091010, "LO", "private")
    original.add_new(0x00080FFF, "LO", "unknown")
    original.add_new(0x60000010, "US", 12)
    original.add_new(0x60000100, "US", 1)
    clean = deidentify_dataset(original, HERE, Options())
    assert not [element.tag for element in clean if element.tag.is_private or element.tag.group >= 0x6000]
    assert 0x00080FFF not in clean


def test_a_value_of_the_wrong_type_goes() -> None:
    original = dataset()
    with quiet():
        original.add(DataElement(0x00180050, "LO", "Jane was here"))
        original.add(DataElement(0x0020000D, "LO", "Jane was here"))
    clean = deidentify_dataset(original, HERE, Options())
    assert 0x00180050 not in clean
    assert clean.StudyInstanceUID.startswith("2.25.")


def test_names_free_text_and_unknown_bytes_go_where_no_line_of_the_table_speaks_of_them() -> None:
    original = dataset()
    original.add_new(0x00401037, "PN", "Other^Name")
    original.add_new(0x0040A160, "UT", "a report about somebody")
    clean = deidentify_dataset(original, HERE, Options())
    assert 0x00401037 not in clean
    assert 0x0040A160 not in clean


def test_an_overlay_in_unused_bits_of_the_pixels_is_refused() -> None:
    original = dataset()
    original.add_new(0x60000102, "US", 12)
    with pytest.raises(Rejected, match=r"overlay-in-pixels.*bit 12"):
        deidentify_dataset(original, HERE, Options())


def test_sequences_are_cleaned_at_every_depth() -> None:
    inner = Dataset()
    inner.PatientName, inner.InstitutionName, inner.RequestAttributesSequence = "Doe^Jane", "There", Sequence()
    inner.ReferencedSOPInstanceUID = "1.2.3.99"
    outer = Dataset()
    outer.ReferencedImageSequence = Sequence([inner])
    clean = cleaned(SharedFunctionalGroupsSequence=Sequence([outer]))
    item = clean.SharedFunctionalGroupsSequence[0].ReferencedImageSequence[0]
    assert item.ReferencedSOPInstanceUID == HERE.uid("1.2.3.99")
    assert item.PatientName == HERE.subject("ID4711")
    assert "There" not in str(item)


def test_sequences_without_end_are_refused() -> None:
    deep = Dataset()
    for _ in range(30):
        above = Dataset()
        above.SharedFunctionalGroupsSequence = Sequence([deep])
        deep = above
    with pytest.raises(Rejected, match="too-deep"):
        cleaned(SharedFunctionalGroupsSequence=Sequence([deep]))


def test_what_physics_needs_is_kept() -> None:
    kept = {"RepetitionTime": 500.0, "EchoTime": 12.0, "FlipAngle": 90.0, "Manufacturer": "ACME", "Rows": 7}
    clean = cleaned(**kept, BodyPartExamined="HEAD", MagneticFieldStrength=3.0, ImagePositionPatient=[1, 2, 3])
    assert {keyword: clean[keyword].value for keyword in kept} == kept
    assert list(clean.ImagePositionPatient) == [1, 2, 3]


def test_a_kept_text_in_which_somebody_typed_the_name_is_emptied() -> None:
    clean = cleaned(ManufacturerModelName="scanner of Jane", ImageType=["ORIGINAL", "ID4711"], BodyPartExamined="HEAD")
    assert not clean.ManufacturerModelName
    assert not clean.ImageType
    assert clean.BodyPartExamined == "HEAD"


def test_options_keep_what_they_name_and_nothing_else() -> None:
    values = {
        "StationName": "MR01",
        "InstitutionName": "There",
        "PatientSex": "F",
        "PatientAge": "094Y",
        "SeriesDescription": "t1",
    }
    plain = cleaned(**values)
    assert not [keyword for keyword in values if plain.get(keyword) in values.values()]
    assert cleaned(Options.retaining(["device"]), **values).StationName == "MR01"
    # An institution's name is also what is removed from texts; kept on request all the same.
    person = cleaned(Options.retaining(["characteristics"]), **values)
    assert (person.PatientSex, person.PatientAge, person.get("StationName")) != ("F", "094Y", "MR01")
    assert (person.PatientSex, person.PatientAge) == ("F", "090Y"), "an age above 89 is told as 90"
    assert cleaned(Options.retaining(["uids"])).StudyInstanceUID == "1.2.3.4.2"


def test_cleaned_descriptors_lose_the_name_and_keep_the_sequence() -> None:
    clean = cleaned(
        Options.retaining(["descriptors"]),
        SeriesDescription="t1 mprage Jane",
        StudyDescription="MRT Dr. Weber 12.03.2020",
        ImageComments="Doe, id4711, left frontal",
    )
    assert clean.SeriesDescription == "t1 mprage [name]"
    assert clean.StudyDescription == "MRT Dr. [name] [date]"
    assert clean.ImageComments == "[name], [id], left frontal"


def test_every_name_at_any_depth_is_known() -> None:
    item = Dataset()
    item.PersonName = "Deep^Down"
    found = identities_of(
        dataset(OperatorsName=["Op^A", "Op^B"], ContentSequence=Sequence([item]), AccessionNumber="ACC77")
    )
    assert {"Doe^Jane", "Deep^Down"} <= set(found.names)
    assert any("Op^A" in name for name in found.names)
    assert found.identifiers == ("ACC77", "ID4711")


def test_a_written_file_reads_again_with_the_same_pixels(tmp_path: Path) -> None:
    for number, syntax in enumerate(("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")):
        paths = write_series(tmp_path / str(number), marked_volume(), axis_affine(), transfer_syntax=syntax)
        original = pydicom.dcmread(paths[0])
        original.file_meta.add_new(0x00020016, "AE", "SECRET")
        clean = deidentify_dataset(original, HERE, Options())
        clean.save_as(tmp_path / "clean.dcm", enforce_file_format=True)
        again = pydicom.dcmread(tmp_path / "clean.dcm")
        np.testing.assert_array_equal(again.pixel_array, original.pixel_array)
        assert again.file_meta.TransferSyntaxUID == syntax
        assert again.file_meta.MediaStorageSOPInstanceUID == again.SOPInstanceUID
        assert b"SECRET" not in (tmp_path / "clean.dcm").read_bytes()
