"""MIMIC-CXR-JPG and CheXpert on made-up trees of their shape: views, reports, splits, uncertain labels."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tomoglot.studies import layouts
from tomoglot.studies.curate import examine
from tomoglot.studies.layouts.chexpert import LABELS, labels_of
from tomoglot.studies.source import read_source

COLUMNS = (*LABELS, "No Finding")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 5, (30, 1))).save(path)


def table(path: Path, rows: list[dict[str, object]], *, packed: bool = False) -> None:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if packed else data)


def reasons(sources):
    return sorted(row.reason for row in sources.rejected)


def named(sources):
    return {(study.subject, study.study): study for study in sources.studies}


def views(study):
    return {series.sequence: series.path.name for series in study.series}


def given(**labels):
    return dict.fromkeys(COLUMNS, "") | {name.replace("_", " "): value for name, value in labels.items()}


SHOTS = (
    # dicom_id, subject, study, view, split
    ("a1", 10000032, 50414267, "AP", "train"),
    ("a2", 10000032, 50414267, "PA", "train"),
    ("a3", 10000032, 50414267, "LATERAL", "train"),
    ("b1", 10000032, 53189527, "LL", "train"),
    ("c1", 11000001, 50000001, "PA", "validate"),
    ("d1", 12000002, 50000002, "SWIMMERS", "test"),
    ("d2", 12000002, 50000002, "", "test"),
    ("d3", 12000002, 50000002, "PA", "test"),
    ("e1", 13000003, 50000003, "PA", "train"),
)


@pytest.fixture(params=[False, True], ids=["csv", "csv.gz"])
def mimic(tmp_path, request):
    end, packed = (".csv.gz", True) if request.param else (".csv", False)
    metadata, split = [], []
    for picture_id, subject, study, view, side in SHOTS:
        who = {"dicom_id": picture_id, "subject_id": subject, "study_id": study}
        metadata.append(who | {"ViewPosition": view, "Rows": 30, "Columns": 40})
        split.append(who | {"split": side})
        if picture_id != "e1":
            picture(tmp_path / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{picture_id}.jpg")
    table(tmp_path / f"mimic-cxr-2.0.0-metadata{end}", metadata, packed=packed)
    table(tmp_path / f"mimic-cxr-2.0.0-split{end}", split, packed=packed)
    mined = [
        {"subject_id": 10000032, "study_id": 50414267}
        | given(Cardiomegaly="1.0", Edema="-1.0", Pleural_Effusion="0.0", Pneumonia="-1.0"),
        {"subject_id": 11000001, "study_id": 50000001} | given(No_Finding="1.0"),
        {"subject_id": 13000003, "study_id": 50000003} | given(Fracture="-1.0"),
    ]
    table(tmp_path / f"mimic-cxr-2.0.0-chexpert{end}", mined, packed=packed)
    # The other labeller disagrees: it is not asked where the first is there.
    table(tmp_path / f"mimic-cxr-2.0.0-negbio{end}", [row | {"Cardiomegaly": "0.0"} for row in mined], packed=packed)
    said = "FINAL REPORT\n EXAMINATION: CHEST\n\n FINDINGS:  The heart is large.\n\n IMPRESSION: Cardiomegaly."
    for place, study in (("files", 50414267), ("mimic-cxr-reports/files", 53189527)):
        path = tmp_path / place / f"p10/p10000032/s{study}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said)
    return tmp_path


def test_mimic_joins_views_reports_labels_and_splits(mimic):
    assert layouts.detect(mimic) == "mimic_cxr_jpg"
    sources = read_source(mimic)
    found = named(sources)
    first, second = found["p10000032", "s50414267"], found["p10000032", "s53189527"]
    assert views(first) == {"cxr_frontal": "a2.jpg", "cxr_lateral": "a3.jpg"}, "PA before AP"
    assert views(second) == {"cxr_lateral": "b1.jpg"}
    assert first.report.findings == second.report.findings == "The heart is large."
    assert found["p11000001", "s50000001"].report is None
    assert {study.subject: study.split for study in sources.studies} == {
        "p10000032": "train", "p11000001": "val", "p12000002": "test",
    }  # fmt: skip
    assert reasons(sources) == [
        "another-cxr_frontal", "pictures-absent", "uncertain-labels", "unknown-view", "unknown-view",
    ]  # fmt: skip
    assert "1 pictures" in next(row.evidence for row in sources.rejected if row.reason == "pictures-absent")
    assert not examine(first).rejected


def test_an_uncertain_label_is_neither_present_nor_absent_and_is_counted(mimic):
    sources = read_source(mimic)
    study = named(sources)["p10000032", "s50414267"]
    assert study.labels == {"cardiomegaly": 1.0, "pleural_effusion": 0.0, "normal": 0.0}
    assert set(study.labels_mined) == set(study.labels), "no reader gave them"
    (counted,) = (row.evidence for row in sources.rejected if row.reason == "uncertain-labels")
    # Those of a study that is not here do not count.
    assert counted.startswith("2 labels of 1 studies")


def test_without_the_first_labeller_the_second_is_read(mimic):
    for path in mimic.glob("*-chexpert*"):
        path.unlink()
    assert named(read_source(mimic))["p10000032", "s50414267"].labels["cardiomegaly"] == 0.0


@pytest.mark.parametrize(
    ("row", "normal"),
    [
        (given(No_Finding="1.0"), 1.0),
        (given(No_Finding="1.0", Support_Devices="1.0"), 0.0),  # ours is without devices
        (given(Fracture="1.0"), 0.0),
        (given(Fracture="0.0"), None),
        (given(Fracture="-1.0"), None),
    ],
)
def test_normal_is_said_only_where_the_labels_say_it(row, normal):
    assert labels_of(row).get("normal") == normal


def test_the_findings_of_the_same_name_are_ours():
    from tomoglot.studies.organ import ORGANS

    same = {"cardiomegaly", "lung_opacity", "consolidation", "atelectasis", "pleural_effusion", "medical_material"}
    assert set(LABELS.values()) & set(ORGANS["chest"]) == same
    assert len(set(LABELS.values())) == len(LABELS) == 13


def shot(place, view="Frontal", projection="AP", **labels):
    return {"Path": f"CheXpert-v1.0-small/{place}", "Sex": "Female", "Age": "68", "Frontal/Lateral": view,
            "AP/PA": projection} | given(**labels)  # fmt: skip


def plus(place, view="Frontal", projection="PA", **words):
    return {"path_to_image": place, "frontal_lateral": view, "ap_pa": projection, "split": place.split("/")[0]} | words


@pytest.fixture
def chexpert(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    train = [
        shot("train/patient00001/study1/view1_frontal.jpg", Cardiomegaly="1.0", Edema="-1.0"),
        shot("train/patient00001/study1/view2_frontal.jpg", projection="PA", Cardiomegaly="1.0", Edema="-1.0"),
        shot("train/patient00001/study1/view3_lateral.jpg", "Lateral", "", Cardiomegaly="1.0", Edema="-1.0"),
        shot("train/patient00001/study2/view1_frontal.jpg", No_Finding="1.0"),
        shot("train/patient00009/study1/view1_frontal.jpg"),
    ]
    table(root / "train.csv", train)
    table(root / "valid.csv", [shot("valid/patient64541/study1/view1_frontal.jpg", Pneumothorax="1.0", Fracture="0.0")])
    for row in train[:4]:
        picture(tmp_path / row["Path"])
    picture(root / "valid/patient64541/study1/view1_frontal.jpg")
    return root


def test_chexpert_is_read_by_study_with_readers_labels_in_its_validation_set(chexpert):
    assert layouts.detect(chexpert) == "chexpert"
    sources = read_source(chexpert)
    found = named(sources)
    assert set(found) == {("patient00001", "study1"), ("patient00001", "study2"), ("patient64541", "study1")}
    first = found["patient00001", "study1"]
    assert views(first) == {"cxr_frontal": "view2_frontal.jpg", "cxr_lateral": "view3_lateral.jpg"}
    assert first.labels == {"cardiomegaly": 1.0, "normal": 0.0} and first.labels_mined == ("cardiomegaly", "normal")
    assert found["patient00001", "study2"].labels == {"normal": 1.0}
    checked = found["patient64541", "study1"]
    assert checked.split == "val" and checked.labels_mined == ()
    assert checked.labels == {"pneumothorax": 1.0, "fracture": 0.0, "normal": 0.0}
    assert all(study.report is None for study in sources.studies)
    assert reasons(sources) == ["another-cxr_frontal", "pictures-absent", "uncertain-labels"]


def test_chexpert_plus_adds_reports_to_the_same_studies(chexpert):
    rows = [
        plus(f"train/patient00001/study1/{file}", section_findings="Large heart.", section_impression="1. Big.")
        for file in ("view1_frontal.jpg", "view3_lateral.jpg")
    ]
    rows[1] |= {"frontal_lateral": "Lateral", "ap_pa": ""}
    table(chexpert / "df_chexpert_plus_240401.csv", rows)
    sources = read_source(chexpert)
    first = named(sources)["patient00001", "study1"]
    assert (first.report.findings, first.report.impression) == ("Large heart.", "1. Big.")
    assert first.labels["cardiomegaly"] == 1.0
    assert reasons(sources).count("another-cxr_frontal") == 1, "a picture that both tables name is one picture"


def test_chexpert_plus_is_read_alone_with_png_pictures(tmp_path):
    table(tmp_path / "df_chexpert_plus_240401.csv", [
        plus("train/patient42142/study5/view1_frontal.jpg", report="FINDINGS: Clear.\nIMPRESSION: Normal."),
        plus("valid/patient64545/study1/view1_frontal.jpg", report="IMPRESSION: Normal."),
    ])  # fmt: skip
    picture(tmp_path / "PNG/train/patient42142/study5/view1_frontal.png")
    picture(tmp_path / "valid/patient64545/study1/view1_frontal.png")
    assert layouts.detect(tmp_path) == "chexpert"
    found = named(read_source(tmp_path))
    assert found["patient42142", "study5"].report.impression == "Normal."
    assert found["patient42142", "study5"].labels == {} == found["patient64545", "study1"].labels
    assert found["patient64545", "study1"].split == "val"


def test_what_is_no_table_of_labels_is_refused_without_naming_anybody(chexpert):
    table(chexpert / "train.csv", [shot("train/patient00001/study1/view1_frontal.jpg", Edema="present")])
    with pytest.raises(ValueError, match="wanted 1, 0, -1 or nothing") as told:
        read_source(chexpert)
    assert "patient" not in str(told.value)


def test_a_strange_place_is_a_row_of_its_own(chexpert):
    table(chexpert / "valid.csv", [shot("valid/patient64541/oddly.jpg")])
    assert "unknown-file" in reasons(read_source(chexpert))
