from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tomoglot.batches.batch import Batch
from tomoglot.schedule import Schedule
from tomoglot.training import TrainState, stream_digest, train


def batch_of(volumes, *, keys=None, offset=0.0):
    size = len(volumes)
    affine = torch.eye(4).repeat(size, 1, 1)
    affine[:, 0, 3] = offset
    return Batch(
        volumes=volumes,
        acquired=torch.ones(size, volumes.shape[1], dtype=torch.bool),
        sequences=("t1w",),
        affine=affine,
        studies=tuple(keys or (f"study-{n}" for n in range(size))),
        subjects=torch.arange(size),
        reports=(None,) * size,
        labels=torch.zeros(size, 0),
        labelled=torch.zeros(size, 0, dtype=torch.bool),
        findings=(),
    )


class Tiny(nn.Module):
    def __init__(self, *, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 2, 2)
        self.log_temperature = nn.Parameter(torch.tensor(0.5))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.seen = []

    def losses(self, batch, *, progress):
        self.seen.append(progress)
        terms = {"fit": (self.convolution(batch.volumes) * self.log_temperature.exp() - 1).square().mean()}
        if progress >= 0.5:
            terms["late"] = 0.01 * self.log_temperature.square()
        return terms


def schedule(**changes):
    return Schedule(steps=4, warmup_steps=0, learning_rate=0.01, accelerator="cpu").but(**changes)


def run(module, batches, plan):
    state = TrainState.fresh(module, plan)
    return state, list(train(module, batches, plan, fabric=plan.fabric(), state=state))


def volumes(number, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, size, 1, 8, 8, 8, generator=generator)


def test_the_rate_rises_to_its_peak_and_then_never_rises_again():
    plan = Schedule(steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))
    assert max(rates) == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[55] == pytest.approx(0.55)


def test_a_minimum_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="above learning_rate"):
        Schedule(learning_rate=0.1, min_learning_rate=0.2)


def test_the_schedule_counts_updates_and_not_batches():
    plan = schedule(batches_per_step=3, warmup_steps=2)
    _, steps = run(Tiny(), [batch_of(v) for v in volumes(12, size=2)], plan)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert [step.learning_rate for step in steps] == [plan.rate(step) for step in range(4)]
    assert [step.samples for step in steps] == [6] * 4


def test_accumulated_batches_equal_one_large_batch():
    parts = volumes(4, size=2)
    split, whole = Tiny(), Tiny()
    _, by_parts = run(split, [batch_of(v) for v in parts], schedule(steps=1, batches_per_step=4))
    _, at_once = run(whole, [batch_of(parts.flatten(0, 1))], schedule(steps=1))
    torch.testing.assert_close(split.state_dict(), whole.state_dict())
    assert by_parts[0].terms == pytest.approx(at_once[0].terms)
    assert by_parts[0].grad_norm == pytest.approx(at_once[0].grad_norm)


def test_a_last_incomplete_accumulation_is_not_dropped():
    parts = volumes(3, size=2)
    module, alone = Tiny(), Tiny()
    _, steps = run(module, [batch_of(v) for v in parts], schedule(steps=2, batches_per_step=2))
    assert [step.samples for step in steps] == [4, 2]
    plan = schedule(steps=2)
    run(alone, [batch_of(parts[:2].flatten(0, 1)), batch_of(parts[2])], plan)
    torch.testing.assert_close(module.state_dict(), alone.state_dict())


def test_a_loader_that_ends_early_says_so():
    with pytest.raises(ValueError, match="ended after 2 of 4 steps"):
        run(Tiny(), [batch_of(v) for v in volumes(2)], schedule())


def test_progress_runs_from_zero_and_a_term_that_is_off_is_absent():
    module = Tiny()
    _, steps = run(module, [batch_of(v) for v in volumes(4)], schedule())
    assert module.seen == [0, 0.25, 0.5, 0.75]
    assert [sorted(step.terms) for step in steps] == [["fit"]] * 2 + [["fit", "late"]] * 2
    assert steps[3].loss == pytest.approx(sum(steps[3].terms.values()))


@pytest.mark.parametrize("batches_per_step", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_studies(batches_per_step):
    bad = volumes(4, size=2)
    bad[3, 1, 0, 0, 0, 0] = float("nan")
    batches = [batch_of(v, keys=(f"key-{n}a", f"key-{n}b")) for n, v in enumerate(bad)]
    module, plan = Tiny(), schedule(batches_per_step=batches_per_step)
    state = TrainState.fresh(module, plan)
    before = {}
    with pytest.raises(FloatingPointError, match=r"fit=nan.*studies key-3a, key-3b\.") as caught:
        for step in train(module, batches, plan, fabric=plan.fabric(), state=state):
            before = {name: value.clone() for name, value in module.state_dict().items()}
            last = step.number
    assert f"step {last + 1} " in str(caught.value)
    assert state.step == last
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    class Rootlike(Tiny):
        def losses(self, batch, *, progress):
            return {
                "root": (self.log_temperature - 0.5).abs().sqrt() * 0 + (self.log_temperature - 0.5).square().sqrt()
            }

    module = Rootlike()
    with pytest.raises(FloatingPointError, match="gradient norm=nan"):
        run(module, [batch_of(v) for v in volumes(1)], schedule())
    assert module.log_temperature.item() == 0.5


def test_gradients_are_clipped_to_the_norm():
    plan = schedule(steps=1, clip_norm=1e-3)
    module = Tiny()
    state = TrainState.fresh(module, plan)
    seen = []
    state.optimiser.register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm())
    )
    steps = list(train(module, [batch_of(volumes(1)[0])], plan, fabric=plan.fabric(), state=state))
    assert seen[0].item() == pytest.approx(1e-3, rel=1e-2)
    assert steps[0].grad_norm > 1e-2
    _, free = run(Tiny(), [batch_of(volumes(1)[0])], plan.but(clip_norm=None))
    assert free[0].grad_norm == pytest.approx(steps[0].grad_norm)


def test_biases_and_temperatures_do_not_decay_and_frozen_weights_are_left_out():
    module = Tiny()
    decayed, kept = TrainState.fresh(module, schedule(weight_decay=0.3)).optimiser.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(module.convolution.weight)]
    assert {id(p) for p in kept["params"]} == {id(module.convolution.bias), id(module.log_temperature)}


def test_the_moving_average_is_its_definition_and_changes_no_weight():
    batches = [batch_of(v) for v in volumes(4)]
    module, without = Tiny(), Tiny()
    plan = schedule(ema_decay=0.15)
    state = TrainState.fresh(module, plan)
    expected = {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}
    for step in train(module, batches, plan, fabric=plan.fabric(), state=state):
        decay = min(0.15, step.number / (9 + step.number))
        for name, value in module.named_parameters():
            if name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    torch.testing.assert_close(state.average, expected)
    bare, _ = run(without, batches, schedule())
    assert bare.average is None
    torch.testing.assert_close(module.state_dict(), without.state_dict(), rtol=0, atol=0)


def test_the_stream_digest_tells_other_studies_other_order_and_other_crops():
    one = volumes(1, size=2)[0]
    seen = {
        stream_digest([batch_of(one, keys=("a", "b"))]),
        stream_digest([batch_of(one, keys=("b", "a"))]),
        stream_digest([batch_of(one, keys=("a", "c"))]),
        stream_digest([batch_of(one, keys=("a", "b"), offset=1.0)]),
    }
    assert len(seen) == 4
    assert stream_digest([batch_of(one, keys=("a", "b"))]) in seen


def test_half_precision_keeps_the_weights_and_the_terms_in_full_precision():
    module = Tiny()
    kinds = []
    module.convolution.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    _, steps = run(module, [batch_of(v) for v in volumes(4)], schedule(precision="bf16-mixed"))
    assert set(kinds) == {torch.bfloat16}
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert steps[0].loss > 0


def test_affines_reach_the_module_in_full_precision():
    class Looks(Tiny):
        def losses(self, batch, *, progress):
            self.kind = batch.affine.dtype
            return super().losses(batch, progress=progress)

    module = Looks()
    run(module, [batch_of(v) for v in volumes(4)], schedule(precision="bf16-mixed"))
    assert module.kind == torch.float32


def test_a_part_learns_at_its_own_rate_and_the_rest_at_the_schedules():
    class TwoParts(Tiny):
        def rate_factors(self):
            return {"other.": 10.0}

        def __init__(self):
            super().__init__()
            self.other = nn.Linear(2, 3)

    module, seen = TwoParts(), []
    state = TrainState.fresh(module, schedule())
    by_factor = {factor: set() for factor in (1.0, 10.0)}
    for group in state.optimiser.param_groups:
        by_factor[group["rate_factor"]] |= set(group["params"])
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}
    assert by_factor[10.0] == set(module.other.parameters())
    assert by_factor[1.0] == {module.log_temperature, *module.convolution.parameters()}
    fabric = schedule().fabric()
    for step in train(module, [batch_of(v) for v in volumes(4)], schedule(), fabric=fabric, state=state):
        rates = {group["rate_factor"]: group["lr"] for group in state.optimiser.param_groups}
        assert rates == {1.0: step.learning_rate, 10.0: pytest.approx(10 * step.learning_rate)}
        seen.append(step.number)
    assert seen

    class Elsewhere(Tiny):
        def rate_factors(self):
            return {"nowhere": 2.0}

    with pytest.raises(ValueError, match=r"no parameter nowhere\*"):
        TrainState.fresh(Elsewhere(), schedule())


def test_a_module_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        TrainState.fresh(nn.Linear(2, 2).requires_grad_(False), schedule())


def test_any_device_that_is_not_finite_stops_all_of_them():
    from tomoglot.training import _refuse_non_finite

    other_is_bad = SimpleNamespace(world_size=2, all_reduce=lambda flag, reduce_op: flag + 1)
    with pytest.raises(FloatingPointError):
        _refuse_non_finite(other_is_bad, torch.tensor(1.0), {}, step=0, batches=[])
