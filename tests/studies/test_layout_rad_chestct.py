"""RAD-ChestCT on a made-up tree of its shape: in place, in Hounsfield units, on its side, labelled by its own table."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tomoglot.geometry import to_ras
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies import layouts
from tomoglot.studies.curate import examine
from tomoglot.studies.rad_chestct import STANDS_FOR
from tomoglot.studies.source import read_source
from tomoglot.studies.stated import read_series
from tomoglot.studies.study import Rejected

LABELS = sorted({label for rests_on in STANDS_FOR.values() for label, _ in rests_on})
PLACES = ("right_upper", "heart", "aorta", "esophagus")
COLUMNS = [f"{label}*{place}" for label in LABELS for place in PLACES]
METADATA = "VolumeAcc_DEID,NoteAcc_DEID,MRN_DEID,Set_Assigned,orig_orientation,final_spacing\n"


def body() -> np.ndarray:
    """Soft tissue in air with the three axes told apart, RAS+ (i to the right, j to the front, k up), 0.8 mm.

    A lung on the right, bone behind, and the head end narrower than the feet's.
    """
    shape = (24, 18, 20)
    i, j, k = np.indices(shape)
    inside = (abs(i - 11.5) < 10 - k * 0.2) & (abs(j - 8.5) < 7)
    voxels = np.where(inside, 40, -1000) + np.random.default_rng(0).integers(-20, 21, shape)
    voxels[14:18, 6:11, 4:14] = -850
    voxels[11:13, 3:5, :] = 900
    return np.clip(voxels, -1000, 1000).astype(np.int16)


def released(ras: np.ndarray) -> np.ndarray:
    """The same body as the set stores it: slices from the head down, rows from the front back, right to left."""
    i, j, k = ras.shape
    stored = np.empty((k, j, i), ras.dtype)
    for z in range(k):
        for y in range(j):
            for x in range(i):
                stored[z, y, x] = ras[i - 1 - x, j - 1 - y, k - 1 - z]
    return stored


def save(root: Path, scan: str, voxels: np.ndarray | None = None) -> Path:
    np.savez_compressed(root / f"{scan}.npz", ct=released(body()) if voxels is None else voxels)
    return root / f"{scan}.npz"


def table(root: Path, part: str, **scans: tuple[str, ...]) -> None:
    rows = [",".join([scan, *("1.0" if name in on else "0.0" for name in COLUMNS)]) for scan, on in scans.items()]
    path = root / f"img{part}_Abnormality_and_Location_Labels.csv"
    path.write_text("\n".join([",".join(["NoteAcc_DEID", *COLUMNS]), *rows]) + "\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "RAD-ChestCT"
    root.mkdir()
    people = {"trn00001": "mrn1", "trn00002": "mrn1", "val00003": "mrn2", "tst00004": "mrn3", "tst00005": "mrn4"}
    for scan in people:
        save(root, scan)
    row = '{0}.npz,{0},{1},x,"1,0,0,0,1,0",0.8\n'
    lines = "".join(row.format(scan, person) for scan, person in [*people.items(), ("trn00099", "mrn9")])
    (root / "CT_Scan_Metadata_Complete_35747.csv").write_text(METADATA + lines)
    table(root, "train", trn00001=("nodule*right_upper",), trn00002=(), trn00099=(), tst00004=("cardiomegaly*heart",))
    table(root, "valid", val00003=("emphysema*right_upper",))
    table(root, "test", tst00004=("calcification*aorta", "nodule*heart"), tst00005=("hernia*esophagus",))
    return root


def named(sources):
    return {study.study: study for study in sources.studies}


def reasons(sources):
    return sorted(row.reason for row in sources.rejected)


def test_scans_stand_under_their_patient_on_the_side_of_the_set_with_the_labels_of_their_part(tree):
    assert layouts.detect(tree) == "rad_chestct"
    sources = read_source(tree)
    studies = named(sources)
    assert reasons(sources) == []
    assert {name: (study.subject, study.split) for name, study in studies.items()} == {
        "trn00001": ("mrn1", "train"),
        "trn00002": ("mrn1", "train"),
        "val00003": ("mrn2", "val"),
        "tst00004": ("mrn3", "test"),
        "tst00005": ("mrn4", "test"),
    }
    on = {name: {label for label, value in study.labels.items() if value} for name, study in studies.items()}
    # The row of a test scan in the table of training is another's, whatever it says.
    assert on == {
        "trn00001": {"lung_nodule"},
        "trn00002": set(),
        "val00003": {"emphysema"},
        "tst00004": {"arterial_wall_calcification"},
        "tst00005": {"hiatal_hernia"},
    }
    for study in studies.values():
        assert study.labels.keys() == STANDS_FOR.keys() and study.labels_mined == tuple(sorted(study.labels))
        assert study.report is None


def test_a_volume_lies_as_the_same_body_in_nifti_does(tree, tmp_path):
    step = np.diag([0.8, 0.8, 0.8, 1.0])
    volume = read_series(named(read_source(tree))["tst00004"].series[0])
    voxels, affine = to_ras(volume.voxels, volume.affine)
    np.testing.assert_array_equal(voxels, body())
    np.testing.assert_allclose(affine[:3, :3], step[:3, :3], atol=1e-12)
    assert volume.voxels.dtype == np.int16
    # And so in a store: one plan, two releases of one body, the same voxels.
    (tmp_path / "nifti").mkdir()
    nibabel.save(nibabel.Nifti1Image(body(), step), tmp_path / "nifti" / "body.nii.gz")
    (tmp_path / "nifti" / "studies.csv").write_text("subject,sequence,path,split\na,ct,body.nii.gz,test\n")
    plan = Plan(spacing_mm=(1.6, 1.6, 1.6), field_voxels=(12, 12, 12), intensity="window")
    stores = []
    for source in (tree, tmp_path / "nifti"):
        out = tmp_path / f"store-{source.name}"
        write_store(read_source(source), out, plan)
        stores.append(Store.open(out))
    (ours, _), (theirs,) = (store.select("test") for store in stores)
    assert ours.labels["arterial_wall_calcification"] == 1.0 and ours.labels_mined
    first, second = (
        store.read_crop(row, (0, 0, 0), (12, 12, 12)) for store, row in zip(stores, (ours, theirs), strict=True)
    )
    # The two lie elsewhere in the world, so that a stored step of a half may round either way.
    np.testing.assert_allclose(first, second, atol=1)
    assert first.std() > 100


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (released(body()) + 1024, "not-hounsfield"),
        (np.clip((released(body()) + 1000) / 2000, 0, 1), "not-hounsfield"),
        (released(body())[0], "wrong-dimension"),
        (np.zeros((5, 5, 5), np.int16), "constant-image"),
    ],
)
def test_a_volume_that_is_no_chest_in_hounsfield_units_is_a_rejected_row(tree, voxels, reason):
    save(tree, "tst00004", voxels)
    found = examine(named(read_source(tree))["tst00004"])
    assert [row.reason for row in found.rejected] == [reason, "no-usable-series"]
    with pytest.raises(Rejected, match=reason):
        read_series(named(read_source(tree))["tst00004"].series[0])


def test_damaged_and_renamed_arrays_are_rejected_rows_and_the_others_are_stored(tree, tmp_path):
    half = save(tree, "tst00004").read_bytes()
    (tree / "tst00004.npz").write_bytes(half[: len(half) // 2])
    np.savez_compressed(tree / "val00003.npz", volume=released(body()))
    done = write_store(read_source(tree), tmp_path / "store", Plan(spacing_mm=(1.6, 1.6, 1.6), intensity="window"))
    assert (done.accepted, done.rejected) == (3, 4)


def test_what_the_metadata_does_not_know_or_says_otherwise_is_refused(tree):
    path = tree / "CT_Scan_Metadata_Complete_35747.csv"
    text = path.read_text()
    turned = text.replace('tst00004,mrn3,x,"1,0,0,0,1,0"', 'tst00004,mrn3,x,"-1,0,0,0,-1,0"')
    path.write_text("\n".join(line for line in turned.splitlines() if "tst00005" not in line))
    save(tree, "notes")
    sources = read_source(tree)
    assert reasons(sources) == ["no-subject", "unknown-file", "unknown-orientation"]
    assert set(named(sources)) == {"trn00001", "trn00002", "val00003"}
    # Written another way the same orientation is the same; without a voxel size a volume cannot be placed.
    path.write_text(text.replace("1,0,0,0,1,0", "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]").replace(",0.8", ","))
    sources = read_source(tree)
    assert reasons(sources) == ["unknown-file"] and len(sources.studies) == 5
    with pytest.raises(Rejected, match=r"spacing-mismatch.*no three positive numbers"):
        read_series(sources.studies[0].series[0])
    path.unlink()
    sources = read_source(tree)
    assert reasons(sources) == ["no-subject"] * 5 + ["unknown-file"] and not sources.studies


def test_one_patient_on_two_sides_of_the_sets_own_split_is_refused(tree):
    path = tree / "CT_Scan_Metadata_Complete_35747.csv"
    path.write_text(path.read_text().replace("mrn3", "mrn1"))
    with pytest.raises(ValueError, match="1 of 3 subjects on more than one side"):
        read_source(tree)


def test_missing_labels_are_counted_and_a_table_cut_short_or_of_another_set_stops(tree):
    table(tree, "test", tst00005=())
    sources = read_source(tree)
    assert [(row.reason, row.evidence[:9]) for row in sources.rejected] == [("labels-absent", "1 volumes")]
    assert named(sources)["tst00004"].labels == {} and named(sources)["tst00004"].labels_mined == ()
    path = tree / "imgtest_Abnormality_and_Location_Labels.csv"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"a cell of \w+ is 'None', wanted 0 or 1.*half a download"):
        read_source(tree)
    path.write_text("NoteAcc_DEID,nodule*lung\ntst00005,1\n")
    with pytest.raises(ValueError, match="no label table of RAD-ChestCT"):
        read_source(tree)
    path.write_bytes(b"NoteAcc_DEID,\xff\xfe\n")
    with pytest.raises(ValueError, match=r"imgtest_.*cannot be read as CSV"):
        read_source(tree)


def test_tables_and_volumes_may_lie_in_folders_of_their_own(tree):
    for folder, pattern in (("tables", "*.csv"), ("images", "*.npz")):
        (tree / folder).mkdir()
        for path in list(tree.glob(pattern)):
            path.rename(tree / folder / path.name)
    assert layouts.detect(tree) == "rad_chestct"
    sources = read_source(tree)
    assert len(sources.studies) == 5 and not sources.rejected
