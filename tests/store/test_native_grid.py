"""The store remembers the grid that each study came on; an older store is read, and says that it does not."""

import json
from pathlib import Path

import numpy as np
import pytest
from nibabel import orientations

from tomoglot.store import layout
from tomoglot.store.catalogue import read_catalogue, write_catalogue
from tomoglot.store.conform import conform
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.verify import verify
from tomoglot.store.writer import write_store
from tomoglot.studies.curate import Examined
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume


def volume(code: str, spacing_mm=(1.0, 1.5, 2.0), shape=(9, 8, 7)) -> Volume:
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(tuple(code)))
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -7, 4, 12
    voxels = np.random.default_rng(0).integers(1, 99, shape).astype(np.int16)
    return Volume(
        voxels=orientations.apply_orientation(voxels, turn), affine=affine @ orientations.inv_ornt_aff(turn, shape)
    )


@pytest.mark.parametrize("code", ["RAS", "LPS", "IPR"])
@pytest.mark.parametrize("plan", [Plan(), Plan(spacing_mm=(3.0, 3.0, 3.0), field_voxels=(8, 8, 8))])
def test_the_native_grid_is_that_of_the_finest_series_before_any_turn(code, plan):
    fine, coarse = volume(code), volume("RAS", spacing_mm=(2.0, 2.0, 4.0))
    examined = Examined(study=Study(subject="a", study="1"), volumes={"flair": coarse, "t1w": fine})
    native = conform(examined, plan).native
    assert native.shape == fine.voxels.shape
    np.testing.assert_array_equal(native.affine, fine.affine)


def one_study(folder: Path) -> Sources:
    path = folder / "flair.nii.gz"
    write_nifti(path, volume("LPS"))
    study = Study(subject="a", study="1", series=(Series(sequence="flair", path=path),))
    return Sources(studies=[study], rejected=[])


def as_format_1(store: Path) -> None:
    """Take away what format 1 did not have, and seal the store again."""
    rows = [row.model_copy(update={"native_shape": None, "native_affine": None}) for row in Store.open(store).rows]
    write_catalogue(rows, store / layout.CATALOGUE_FILE)
    content = layout.unseal((store / layout.STORE_FILE).read_bytes(), layout.STORE_FILE)
    content["format"] = 1
    content["files"][layout.CATALOGUE_FILE] = layout.digest_file(store / layout.CATALOGUE_FILE)
    (store / layout.STORE_FILE).write_bytes(layout.seal(content))


def test_the_native_grid_survives_the_store_and_its_verification(tmp_path):
    write_store(one_study(tmp_path), tmp_path / "store", Plan())
    (row,) = Store.open(tmp_path / "store").rows
    np.testing.assert_array_equal(row.native_grid.affine, volume("LPS").affine)
    assert row.native_grid.shape == volume("LPS").voxels.shape and verify(tmp_path / "store") == []


def test_a_store_of_format_1_opens_and_refuses_only_what_it_does_not_know(tmp_path):
    write_store(one_study(tmp_path), tmp_path / "store", Plan())
    as_format_1(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.read_crop(store.rows[0], (0, 0, 0), (4, 4, 4)).any()
    with pytest.raises(ValueError, match=r"format 1.*ingest"):
        _ = store.rows[0].native_grid


def test_ingest_into_an_older_store_writes_its_studies_again(tmp_path, monkeypatch):
    sources = one_study(tmp_path)
    with monkeypatch.context() as before:
        before.setattr(layout, "FORMAT", 1)
        write_store(sources, tmp_path / "store", Plan())
    as_format_1(tmp_path / "store")
    assert write_store(sources, tmp_path / "store", Plan()).skipped == 0
    assert Store.open(tmp_path / "store").rows[0].native_grid.shape == (9, 8, 7)
    assert write_store(sources, tmp_path / "store", Plan()).skipped == 1


def test_a_catalogue_without_the_new_columns_is_read(tmp_path):
    import duckdb

    write_store(one_study(tmp_path), tmp_path / "store", Plan())
    whole, old = tmp_path / "store" / layout.CATALOGUE_FILE, tmp_path / "old.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT * EXCLUDE (native_shape, native_affine) FROM read_parquet('{whole}')) TO '{old}'"
        )
    (row,), (full,) = read_catalogue(old), read_catalogue(whole)
    assert row.native_shape is None and json.loads(full.model_dump_json())["native_shape"] == [9, 8, 7]
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * EXCLUDE (digest) FROM read_parquet('{whole}')) TO '{old}' (OVERWRITE true)")
    with pytest.raises(ValueError, match="readable catalogue"):
        read_catalogue(old)


def test_a_format_of_the_future_is_refused(tmp_path):
    write_store(one_study(tmp_path), tmp_path / "store", Plan())
    content = layout.unseal((tmp_path / "store" / layout.STORE_FILE).read_bytes(), layout.STORE_FILE)
    content["format"] = 3
    (tmp_path / "store" / layout.STORE_FILE).write_bytes(layout.seal(content))
    with pytest.raises(ValueError, match="store format 3, this version reads 1 and 2"):
        Store.open(tmp_path / "store")
