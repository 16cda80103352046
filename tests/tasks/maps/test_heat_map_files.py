"""Files of heat maps: their scale, what they say of themselves, and the plane that is drawn."""

import nibabel
import numpy as np
import pytest
from whole_fields import make_row

from tomoglot.tasks.maps import heat_map_files
from tomoglot.tasks.maps.heat_map_files import draw_overlay, write_heat

SHAPE = (6, 5, 4)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.mark.parametrize("simulated", [True, False])
def test_a_written_map_is_over_its_highest_value_and_says_what_it_is(tmp_path, simulated):
    grid = {"native_shape": SHAPE, "native_affine": tuple(map(tuple, AFFINE.tolist()))}
    row = make_row("s", sequences=("t1w",), shape=SHAPE, affine=grid["native_affine"], simulated=simulated, **grid)
    heat = np.random.default_rng(0).random(SHAPE).astype(np.float32) * 5
    for name, its, expected in (("some", heat, heat / heat.max()), ("none", np.zeros_like(heat), np.zeros_like(heat))):
        write_heat(tmp_path / f"{name}.nii.gz", its, AFFINE, row)
        image = nibabel.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-3)
        said = bytes(image.header["descrip"].item()).decode()
        assert ("simulated study" in said) == simulated and "research only, not for diagnosis" in said


def test_the_plane_with_most_of_the_lesion_is_drawn(tmp_path, monkeypatch):
    region = np.zeros(SHAPE, dtype=bool)
    region[2, 2, 1], region[1:4, 1:4, 2] = True, True
    numbered = np.broadcast_to(np.arange(SHAPE[2], dtype=np.float32), SHAPE)
    drawn, shown = [], heat_map_files.shown
    monkeypatch.setattr(heat_map_files, "shown", lambda plane: drawn.append(np.unique(plane)) or shown(plane))
    draw_overlay(
        tmp_path / "a.png", {"t1w": numbered}, {"t1w": numbered}, region, affine=AFFINE, title="simulated study"
    )
    assert [its.tolist() for its in drawn].count([2.0]) == 3, "the image twice and its heat"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
