"""Templates learned through windows: AdamW where crops cover all, and nothing moves where they do not."""

import copy

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing import spawn

from tomoglot.encoders.covered import CoveredAdamW, Window, merged
from tomoglot.encoders.template import TemplateBank
from tomoglot.schedule import Schedule
from tomoglot.training import TrainState

GRID = TemplateBank.Config(origin_mm=(0.0, 0.0, 0.0), spacing_mm=(1.0, 1.0, 1.0), shape=(14, 12, 10), update="covered")
SEQUENCES = ("t1w", "flair")
RATE = 0.01


def affine(*start: float) -> Tensor:
    found = torch.eye(4)
    found[:3, 3] = torch.tensor(start)
    return found


def made(update: str = "covered") -> tuple[TemplateBank, torch.optim.Optimizer]:
    bank = TemplateBank(GRID.but(update=update), SEQUENCES)
    with torch.no_grad():
        for number, values in enumerate(bank.values.values()):
            values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(number)))
    holder = torch.nn.ModuleDict({"bank": bank, "network": torch.nn.Linear(3, 2)})
    schedule = Schedule(steps=10, warmup_steps=0, learning_rate=RATE, weight_decay=0.5)
    return bank, TrainState.fresh(holder, schedule).optimiser


def step(
    bank: TemplateBank, optimiser: torch.optim.Optimizer, crops: list[Tensor], shape: tuple[int, int, int], seed: int
) -> None:
    names = ["t1w"] * len(crops)
    read = bank.read(names, torch.stack(crops), shape)
    wanted = torch.randn(read.shape, generator=torch.Generator().manual_seed(seed))
    ((read - wanted) ** 2).mean().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@pytest.mark.parametrize("crops", [[affine(0, 0, 0)], [affine(0, 0, 0), affine(1, 0, -1)]])
def test_where_every_step_covers_the_whole_grid_it_is_adamw(crops: list[Tensor]) -> None:
    ours, dense = made(), made("dense")
    for seed in range(6):
        for bank, optimiser in (ours, dense):
            step(bank, optimiser, crops, GRID.shape, seed)
    torch.testing.assert_close(ours[0].state_dict(), dense[0].state_dict(), atol=2e-6, rtol=1e-5)


def test_reading_through_windows_gives_the_same_crops() -> None:
    turned = affine(3, 2, 1) @ torch.tensor([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1.3, 0], [0, 0, 0, 1.0]])
    places = torch.stack([affine(2, 3, 4), affine(-3, 9.5, 7.25), turned, affine(2, 3, 4)])
    bank, _ = made()
    asked = ["flair", "t1w", "t1w", "t1w"]
    with torch.no_grad():
        whole = bank.read(asked, places, (5, 4, 6))
    assert bank.windows == []
    torch.testing.assert_close(bank.read(asked, places, (5, 4, 6)), whole, atol=1e-5, rtol=1e-5)
    assert len(bank.windows) == 4
    far = torch.stack([affine(200, 0, 0), affine(2, 3, 4)])
    read = bank.read(["t1w", "t1w"], far, (5, 4, 6))
    assert (read[0] == 0).all() and (read[1] != 0).all()


def test_outside_the_box_nothing_moves_and_inside_each_value_has_a_clock_of_its_own() -> None:
    """Beside the slow definition: one Adam a value, stepped only when a window lies over it."""
    bank, optimiser = made()
    before = bank.values["t1w"].detach().clone()
    places, shape = [affine(1, 1, 1), affine(4, 3, 2), affine(4, 3, 2), affine(1, 1, 1)], (4, 4, 4)
    slow = torch.nn.Parameter(before.view(GRID.shape)[3:6, 3:5, 3:4].clone())
    adam = torch.optim.Adam([slow], lr=RATE, betas=Schedule().betas)
    for place in places:
        bank.read(["t1w"], place[None], shape).square().sum().backward()
        window = bank.windows[0]
        gradient = torch.zeros(GRID.shape)
        gradient[tuple(slice(*edge) for edge in window.box)] = window.values.grad
        slow.grad = gradient[3:6, 3:5, 3:4].clone()
        optimiser.step()
        optimiser.zero_grad()
        adam.step()
    after = bank.values["t1w"].detach().view(GRID.shape)
    torch.testing.assert_close(after[3:6, 3:5, 3:4], slow.detach(), atol=1e-6, rtol=1e-5)
    seen = optimiser.state[bank.values["t1w"]]["seen"].view(GRID.shape)
    assert seen.max() == 4 and seen[0, 0, 0] == 2 and seen[8, 7, 6] == 2 and seen[12, 0, 0] == 0
    assert torch.equal(after[seen == 0], before.view(GRID.shape)[seen == 0])
    assert bank.values["flair"] not in optimiser.state


def test_a_value_first_covered_late_moves_as_one_covered_first() -> None:
    bank, optimiser = made()
    for seed in range(5):
        step(bank, optimiser, [affine(0, 0, 0)], (3, 3, 3), seed)
    before = bank.values["t1w"].detach().clone().view(GRID.shape)
    step(bank, optimiser, [affine(8, 8, 6)], (3, 3, 3), 9)
    moved = (bank.values["t1w"].detach().view(GRID.shape) - before)[8:11, 8:11, 6:9].abs()
    torch.testing.assert_close(moved, torch.full_like(moved, RATE), atol=1e-5, rtol=1e-3)


def test_overlapping_crops_of_one_step_add_their_gradients_and_update_once() -> None:
    parameter = torch.nn.Parameter(torch.zeros(8 * 6 * 4))
    boxes = [((0, 4), (0, 4), (0, 3)), ((2, 6), (3, 6), (1, 4)), ((6, 8), (0, 2), (0, 2)), ((0, 4), (0, 4), (0, 3))]
    windows, slow = [], torch.zeros(8, 6, 4)
    covered = torch.zeros(8, 6, 4, dtype=torch.bool)
    for box in boxes:
        values = torch.randn([end - first for first, end in box])
        windows.append(Window(parameter=parameter, shape=(8, 6, 4), box=box, values=values))
        slow[tuple(slice(*edge) for edge in box)] += values
        covered[tuple(slice(*edge) for edge in box)] = True
    fast, times = torch.zeros(8, 6, 4), torch.zeros(8, 6, 4)
    for box, gradient, mask in merged(windows):
        at = tuple(slice(*edge) for edge in box)
        fast[at] += gradient
        times[at] += 1 if mask is None else mask
    torch.testing.assert_close(fast, slow)
    assert torch.equal(times, covered.float())


def test_a_state_saved_and_loaded_goes_on_bit_for_bit() -> None:
    bank, optimiser = made()
    crops = [affine(0, 0, 0), affine(3.5, 2, 1)]
    for seed in range(3):
        step(bank, optimiser, crops, (5, 5, 5), seed)
    other, again = made()
    other.load_state_dict(bank.state_dict())
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for seed in range(3, 6):
        for one, its in ((bank, optimiser), (other, again)):
            step(one, its, [affine(seed, 0, 1)], (5, 5, 5), seed)
    assert torch.equal(bank.values["t1w"], other.values["t1w"])
    assert again.state[other.values["t1w"]]["seen"].dtype == torch.int16
    states = [optimiser.state[bank.values["t1w"]], again.state[other.values["t1w"]]]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_gradient_that_is_not_finite_updates_nothing() -> None:
    bank, optimiser = made()
    before = copy.deepcopy(bank.state_dict())
    bank.read(["t1w"], affine(0, 0, 0)[None], (3, 3, 3)).sum().mul(float("inf")).backward()
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        optimiser.step()
    torch.testing.assert_close(bank.state_dict(), before, rtol=0, atol=0)


def test_without_an_optimiser_no_window_is_kept_and_min_max_is_refused() -> None:
    bank = TemplateBank(GRID, SEQUENCES)
    bank.read(["t1w"], affine(0, 0, 0)[None], (3, 3, 3))
    assert bank.windows is None
    with pytest.raises(ValueError, match="set update to 'dense'"):
        GRID.but(scaling="minmax")


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    bank, optimiser = made()
    for seed in range(3):
        step(bank, optimiser, [affine(3 * rank, seed, 0)], (5, 5, 5), seed + 10 * rank)
    torch.save(bank.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_end_with_the_templates_of_one_that_reads_both_crops(tmp_path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    bank, optimiser = made()
    for seed in range(3):
        for rank in (0, 1):
            read = bank.read(["t1w"], affine(3 * rank, seed, 0)[None], (5, 5, 5))
            wanted = torch.randn(read.shape, generator=torch.Generator().manual_seed(seed + 10 * rank))
            (((read - wanted) ** 2).mean() / 2).backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.testing.assert_close(bank.state_dict(), first, atol=1e-6, rtol=1e-5)


def test_the_whole_optimiser_keeps_to_adamw_for_the_network() -> None:
    network = torch.nn.Linear(4, 3)
    twin = copy.deepcopy(network)
    groups = [{"params": list(network.parameters()), "weight_decay": 0.1}]
    pairs = (network, CoveredAdamW(groups, network, lr=0.1)), (twin, torch.optim.AdamW(twin.parameters(), 0.1))
    pairs[1][1].param_groups[0]["weight_decay"] = 0.1
    for module, optimiser in pairs:
        for _ in range(3):
            module(torch.ones(2, 4)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=0, atol=0)
