"""The template bank is read by world position, and only what a batch names ever moves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tomoglot.encoders.template import TemplateBank
from tomoglot.geometry import Grid, resample
from tomoglot.schedule import Schedule
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.training import TrainState

GRID = TemplateBank.Config(origin_mm=(-30.0, -20.0, 5.0), spacing_mm=(2.0, 3.0, 4.0), shape=(20, 16, 12))
SEQUENCES = ("t1w", "flair", "dwi")
CROP = (6, 5, 7)


def ramp(axis: int, config: TemplateBank.Config = GRID) -> Tensor:
    """Each template voxel holds its own world position along one axis, mm."""
    along = config.origin_mm[axis] + config.spacing_mm[axis] * torch.arange(config.shape[axis], dtype=torch.float32)
    shape = [1, 1, 1]
    shape[axis] = -1
    return along.view(shape).expand(config.shape).contiguous()


def bank_of(values: Tensor, config: TemplateBank.Config = GRID) -> TemplateBank:
    bank = TemplateBank(config, SEQUENCES)
    with torch.no_grad():
        for parameter in bank.values.values():
            parameter.copy_(values.flatten())
    return bank


def crop_affines() -> dict[str, Tensor]:
    """Crops that lie inside the grid: aligned, flipped, of another spacing, permuted, turned."""
    straight = np.diag([2.0, 3.0, 4.0, 1.0])
    straight[:3, 3] = (-20.0, -11.0, 13.0)
    flipped = straight.copy()
    flipped[0, 0], flipped[0, 3] = -2.0, -6.0
    flipped[2, 2], flipped[2, 3] = -4.0, 39.0
    fine = np.diag([0.7, 1.1, 1.3, 1.0])
    fine[:3, 3] = (-14.3, 3.2, 20.1)
    permuted = np.zeros((4, 4))
    permuted[0, 2], permuted[1, 0], permuted[2, 1], permuted[3, 3] = 1.5, -2.0, 2.5, 1.0
    permuted[:3, 3] = (-25.0, 15.0, 10.0)
    turn = np.deg2rad(20)
    turned = np.eye(4)
    turned[:2, :2] = 2 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    turned[:3, 3] = (-10.0, -5.0, 20.0)
    found = {"aligned": straight, "flipped": flipped, "fine": fine, "permuted": permuted, "turned": turned}
    return {name: torch.tensor(affine, dtype=torch.float32) for name, affine in found.items()}


def worlds_in_words(affine: Tensor, axis: int) -> Tensor:
    """World position of each voxel of a crop, one voxel at a time."""
    found = torch.zeros(CROP)
    for i in range(CROP[0]):
        for j in range(CROP[1]):
            for k in range(CROP[2]):
                found[i, j, k] = (affine @ torch.tensor([i, j, k, 1.0]))[axis]
    return found


@pytest.mark.parametrize("name", crop_affines())
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_is_read_at_the_world_position_of_every_voxel(name: str, axis: int) -> None:
    """Trap 7: a trilinear reading of a ramp is exact, so any slip of half a voxel or of an axis would show."""
    affine = crop_affines()[name]
    read = bank_of(ramp(axis)).read(["t1w"], affine[None], CROP)[0, 0]
    torch.testing.assert_close(read, worlds_in_words(affine, axis), atol=1e-4, rtol=0)


def test_reading_equals_resampling_the_exported_volume() -> None:
    bank = bank_of(torch.randn(GRID.shape, generator=torch.Generator().manual_seed(0)))
    volume = bank.volumes()["flair"]
    for affine in crop_affines().values():
        slow = resample(volume.voxels, volume.affine, Grid(CROP, affine.double().numpy()))
        step = np.abs(np.linalg.inv(volume.affine) @ affine.double().numpy())[:3, :3].max()
        if step > 1 + 1e-6:
            continue  # `resample` smooths before it coarsens
        read = bank.read(["flair"], affine[None], CROP)[0, 0].detach().numpy()
        np.testing.assert_allclose(read, slow, atol=1e-4)


def test_a_crop_that_hangs_over_the_edge_reads_the_template_inside_and_zero_outside() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    affine[:3, 3] = torch.tensor([-34.0, -20.0, 5.0])  # two voxels before the first
    read = bank_of(torch.ones(GRID.shape)).read(["t1w"], affine[None], CROP)[0, 0]
    assert (read[:2] == 0).all() and (read[2:] == 1).all()


def test_each_row_reads_the_template_of_its_own_sequence_and_place() -> None:
    bank = TemplateBank(GRID, SEQUENCES)
    with torch.no_grad():
        for number, name in enumerate(SEQUENCES):
            bank.values[name].copy_(ramp(0).flatten() + 1000 * number)
    places = torch.stack([crop_affines()[name] for name in ("aligned", "fine", "flipped", "aligned")])
    asked = ["dwi", "t1w", "dwi", "flair"]
    together = bank.read(asked, places, CROP)
    for row, name in enumerate(asked):
        torch.testing.assert_close(together[row : row + 1], bank.read([name], places[row : row + 1], CROP))
        assert (together[row].mean() / 1000).round() == SEQUENCES.index(name)


@pytest.mark.parametrize("scaling", ["none", "minmax"])
def test_a_template_starts_at_zero_and_gets_a_finite_gradient_there(scaling: str) -> None:
    bank = TemplateBank(GRID.but(scaling=scaling), SEQUENCES)
    read = bank.read(["t1w"], crop_affines()["aligned"][None], CROP)
    assert (read == 0).all()
    ((read - torch.randn(read.shape, generator=torch.Generator().manual_seed(0))) ** 2).sum().backward()
    gradient = bank.values["t1w"].grad
    assert gradient is not None and gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 100


def test_min_max_runs_over_the_whole_template_and_lets_the_gradient_through() -> None:
    values = torch.randn(GRID.shape, generator=torch.Generator().manual_seed(0)) * 5 + 3
    bank = bank_of(values, GRID.but(scaling="minmax"))
    whole = bank.whole("t1w")
    torch.testing.assert_close(whole, (values - values.min()) / (values.max() - values.min()))
    crop = bank.read(["t1w"], crop_affines()["aligned"][None], CROP)
    assert crop.min() > 0 or crop.max() < 1  # scaled before it was cropped
    crop.sum().backward()
    gradient = bank.values["t1w"].grad.view(GRID.shape)
    # Where no crop lies, only the lowest and the highest voxel count: the scaling hangs on them.
    outside = gradient[15:]
    assert (outside != 0).sum() <= 2
    assert gradient.flatten()[values.argmax()] != 0 and gradient.flatten()[values.argmin()] != 0


def test_only_the_sequences_of_a_batch_get_a_gradient_and_only_they_move() -> None:
    """Trap 8. The others have no gradient at all, so neither momentum nor weight decay can shift them."""
    bank = bank_of(torch.ones(GRID.shape))
    schedule = Schedule(steps=10, warmup_steps=0, learning_rate=0.1, weight_decay=0.5)
    optimiser = TrainState.fresh(bank, schedule).optimiser
    affine = crop_affines()["aligned"][None]

    def step(name: str) -> None:
        bank.read([name], affine, CROP).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    step("t1w")  # t1w has momentum from here on
    assert (bank.values["flair"] == 1).all() and (bank.values["dwi"] == 1).all()
    before = bank.values["t1w"].detach().clone()
    step("flair")
    assert torch.equal(bank.values["t1w"], before)
    bank.read(["flair"], affine, CROP).sum().backward()
    assert bank.values["t1w"].grad is None and bank.values["dwi"].grad is None
    assert bank.values["flair"].grad.abs().sum() > 0


def test_weight_decay_never_pulls_on_what_a_crop_does_not_cover() -> None:
    bank = bank_of(torch.ones(GRID.shape))
    schedule = Schedule(steps=10, warmup_steps=0, learning_rate=0.1, weight_decay=0.5)
    optimiser = TrainState.fresh(bank, schedule).optimiser
    bank.read(["t1w"], crop_affines()["aligned"][None], CROP).sum().backward()
    covered = bank.values["t1w"].grad != 0
    optimiser.step()
    assert 0 < covered.sum() < covered.numel()
    assert (bank.values["t1w"][~covered] == 1).all()
    assert (bank.values["t1w"][covered] < 1).all()


def test_gain_multiplies_how_far_a_step_moves_a_template() -> None:
    moved = []
    for gain in (1.0, 10.0):
        bank = TemplateBank(GRID.but(gain=gain), SEQUENCES)
        optimiser = torch.optim.Adam(bank.parameters(), lr=0.01)
        bank.read(["t1w"], crop_affines()["aligned"][None], CROP).sum().backward()
        optimiser.step()
        moved.append(bank.whole("t1w").abs().max().item())
    assert moved[0] == pytest.approx(0.01, rel=1e-3) and moved[1] == pytest.approx(0.1, rel=1e-3)


def test_templates_are_in_the_state_and_in_the_export_where_they_lie_in_the_world(tmp_path: Path) -> None:
    bank = bank_of(ramp(1))
    other = TemplateBank(GRID, SEQUENCES)
    other.load_state_dict(bank.state_dict(), strict=True)
    assert torch.equal(other.whole("dwi"), ramp(1))
    path = tmp_path / "dwi.nii.gz"
    write_nifti(path, bank.volumes()["dwi"])
    volume = read_nifti(path)
    y_mm = volume.affine[1, 3] + volume.affine[1, 1] * np.arange(GRID.shape[1])
    np.testing.assert_allclose(volume.voxels[3, :, 2], y_mm, atol=1e-4)


def test_studies_that_lie_elsewhere_are_refused_with_the_box() -> None:
    far = crop_affines()["aligned"].clone()
    far[0, 3] += 500
    bank = TemplateBank(GRID, SEQUENCES)
    with pytest.raises(ValueError, match=r"x -30 to 8, y -20 to 25, z 5 to 49 mm.*registered"):
        bank.read(["t1w"], far[None], CROP)
    with pytest.raises(ValueError, match="no template of adc; this model was built for dwi, flair, t1w"):
        bank.read(["adc"], crop_affines()["aligned"][None], CROP)
    with pytest.raises(ValueError, match="positive spacing"):
        GRID.but(spacing_mm=(0.0, 1.0, 1.0))
