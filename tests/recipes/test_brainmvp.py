"""BrainMVP: each named component matters, the switches do what they say, and the papers' traps stay shut."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import spawn

import tiny_run
from tomoglot.batches.batch import Batch
from tomoglot.checkpoint import load_checkpoint, read_resume
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.template import TemplateBank
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.objectives.contrastive import info_nce
from tomoglot.recipes import brainmvp
from tomoglot.recipes.brainmvp import BrainMVP, View
from tomoglot.recipes.recipe import Recipe
from tomoglot.run import Interrupted, RunConfig, pretrain
from tomoglot.studies.nifti import read_nifti

SEQUENCES = ("t1w", "flair", "dwi")
GRID = TemplateBank.Config(origin_mm=(-8.0, -8.0, -8.0), spacing_mm=(1.0, 1.0, 1.0), shape=(40, 40, 40))
ACQUIRED = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [False, True, False]])


def config(**changes: object) -> BrainMVP.Config:
    small = BrainMVP.Config(
        vision=PlainConv.Config(widths=(8, 16), blocks=(0, 0)), templates=GRID, block_voxels=4, contrast_from=0.5
    )
    return small.but(**changes)


def batch(seed: int = 0, *, acquired: Tensor = ACQUIRED, shape: tuple[int, int, int] = (16, 16, 16)) -> Batch:
    maker = torch.Generator().manual_seed(seed)
    count, channels = acquired.shape
    volumes = torch.randn(count, channels, *shape, generator=maker) * acquired[:, :, None, None, None]
    affine = torch.eye(4).repeat(count, 1, 1)
    affine[:, :3, 3] = torch.arange(count)[:, None].float()
    return Batch(
        volumes=volumes,
        acquired=acquired,
        sequences=SEQUENCES[:channels],
        affine=affine,
        studies=tuple(f"study{i}" for i in range(count)),
        subjects=torch.arange(count),
        reports=(None,) * count,
        labels=torch.zeros(count, 1),
        labelled=torch.zeros(count, 1, dtype=torch.bool),
        findings=("mass",),
    )


def built(seed: int = 0, **changes: object) -> BrainMVP:
    torch.manual_seed(seed)
    return config(**changes).build(SEQUENCES)


def with_templates(module: BrainMVP) -> BrainMVP:
    """Give each template a value of its own, so that a reader can tell them apart."""
    assert module.bank is not None
    with torch.no_grad():
        for number, name in enumerate(SEQUENCES):
            module.bank.values[name].fill_(10.0 + number)
    return module


def test_the_cmr_view_holds_the_target_where_visible_and_its_partner_where_hidden() -> None:
    module, studies = built(sequences_per_study=None), batch(acquired=torch.ones(4, 3, dtype=torch.bool))
    targets = module.draw_targets(studies)
    view = module.make_views(studies, targets, progress=0.0)["cmr"]
    for row in range(len(targets.study)):
        study, channel, hidden = int(targets.study[row]), int(targets.channel[row]), view.hidden[row, 0]
        target, filled = studies.volumes[study, channel], view.filled[row, 0]
        assert torch.equal(filled[~hidden], target[~hidden])
        sources = [c for c in range(3) if torch.equal(filled[hidden], studies.volumes[study, c][hidden])]
        assert len(sources) == 1 and sources[0] != channel
        assert not (filled[hidden] == target[hidden]).any()


def test_the_md_view_is_filled_from_the_template_of_the_target_at_its_place() -> None:
    module, studies = built(), batch()
    with torch.no_grad():
        for number, name in enumerate(SEQUENCES):
            x = torch.arange(40.0)[:, None, None].expand(40, 40, 40) - 8
            module.bank.values[name].copy_((x + 100 * number).flatten())
    targets = module.draw_targets(studies)
    view = module.make_views(studies, targets, progress=0.0)["md"]
    for row, name in enumerate(targets.sequences):
        hidden = view.hidden[row, 0]
        x_mm = torch.arange(16.0)[:, None, None].expand(16, 16, 16) + float(
            studies.affine[int(targets.study[row]), 0, 3]
        )
        expected = x_mm + 100 * SEQUENCES.index(name)
        torch.testing.assert_close(view.filled[row, 0][hidden], expected[hidden], atol=1e-3, rtol=0)


def test_the_encoder_never_sees_a_hidden_voxel_of_the_target() -> None:
    """Change every voxel of one channel where it is hidden: with that channel as the target nothing may move."""
    both = torch.tensor([[True, True, False], [True, True, False]])
    for changes in ({}, {"filler": "zero", "md_weight": 0.0, "mcl_weight": 0.0}):
        module, studies = built(**changes), batch(acquired=both)
        torch.manual_seed(5)
        targets = module.draw_targets(studies)
        views = module.make_views(studies, targets, progress=0.0)
        for name, view in views.items():
            volumes = studies.volumes.clone()
            volumes[targets.study, targets.channel] += 7.0 * view.hidden[:, 0]
            changed = Batch(**{slot: getattr(studies, slot) for slot in Batch.__slots__} | {"volumes": volumes})
            torch.manual_seed(5)
            again = module.make_views(changed, module.draw_targets(changed), progress=0.0)[name]
            assert torch.equal(again.hidden, view.hidden)
            assert torch.equal(again.filled, view.filled), name


def test_a_partner_is_always_another_acquired_sequence_of_the_same_study() -> None:
    """Trap 9, over many draws; every possible partner turns up."""
    module, studies = built(sequences_per_study=None), batch()
    seen: set[tuple[int, int, int]] = set()
    for _ in range(60):
        targets = module.draw_targets(studies)
        partners = module.draw_partners(studies.acquired, targets)
        for study, channel, partner in zip(targets.study, targets.channel, partners, strict=True):
            seen.add((int(study), int(channel), int(partner)))
    wanted = {
        (study, channel, partner)
        for study in range(3)
        for channel in range(3)
        for partner in range(3)
        if channel != partner and ACQUIRED[study, channel] and ACQUIRED[study, partner]
    }
    assert seen == wanted | {(3, 1, -1)}


def test_a_study_with_one_sequence_falls_back_to_its_template() -> None:
    """Trap 9: the released code stops here."""
    module, studies = with_templates(built(md_weight=0.0)), batch()
    targets = module.draw_targets(studies)
    view = module.make_views(studies, targets, progress=0.0)["cmr"]
    (lonely,) = (targets.study == 3).nonzero()[0].tolist()
    filled = view.filled[lonely][view.hidden[lonely]]
    torch.testing.assert_close(filled, torch.full_like(filled, 11.0))
    terms = module.losses(batch(acquired=ACQUIRED[3:].expand(2, 3).contiguous()), progress=0.0)
    assert terms["cmr"].isfinite()


def test_one_sequence_a_study_is_drawn_evenly_among_those_acquired() -> None:
    module, studies = built(), batch()
    counts = torch.zeros(4, 3)
    for _ in range(300):
        targets = module.draw_targets(studies)
        assert targets.study.tolist() == [0, 1, 2, 3]
        counts[targets.study, targets.channel] += 1
    assert (counts[~ACQUIRED] == 0).all()
    share = counts / 300
    assert (share[0] - 1 / 3).abs().max() < 0.1 and (share[1, [0, 2]] - 0.5).abs().max() < 0.1


def test_every_sequence_is_a_target_when_asked_and_each_study_takes_turns() -> None:
    targets = built(sequences_per_study=None).draw_targets(batch())
    assert len(targets.study) == int(ACQUIRED.sum())
    assert sorted(targets.turn[targets.study == 0].tolist()) == [0, 1, 2]
    assert len(built(sequences_per_study=2).draw_targets(batch()).study) == 2 + 2 + 2 + 1


def test_the_loss_counts_hidden_voxels_only_unless_the_whole_crop_is_asked_for() -> None:
    """Trap 5, through the recipe: visible voxels of the truth change, the encoder's input does not."""
    for counted, equal in (("hidden", True), ("crop", False)):
        module, studies = built(counted=counted), batch()
        targets = module.draw_targets(studies)
        view = module.make_views(studies, targets, progress=0.0)["md"]
        other = torch.where(view.hidden, targets.volumes, targets.volumes + 1)
        changed = brainmvp.Targets(
            **{slot: getattr(targets, slot) for slot in brainmvp.Targets.__slots__} | {"volumes": other}
        )
        features = module.vision(view.filled)
        first, second = (module._error(features, one, view) for one in (targets, changed))
        assert torch.equal(first, second) is equal


@pytest.mark.parametrize(
    ("changes", "early", "late"),
    [
        ({}, {"cmr", "md"}, {"cmr", "md", "mcl"}),
        ({"mcl_weight": 0.0}, {"cmr", "md"}, {"cmr", "md"}),
        ({"mcl_weight": 0.0, "md_weight": 0.0}, {"cmr"}, {"cmr"}),
        ({"cmr_weight": 0.0, "mcl_weight": 0.0}, {"md"}, {"md"}),
        ({"md_weight": 0.0}, {"cmr"}, {"cmr", "mcl"}),
        ({"filler": "zero", "md_weight": 0.0, "mcl_weight": 0.0}, {"mae"}, {"mae"}),
    ],
)
def test_a_term_that_is_off_is_not_there_and_costs_nothing(
    changes: dict[str, object], early: set[str], late: set[str]
) -> None:
    """Trap 11: no value, no graph, and no volume encoded for it alone."""
    module, encoded = built(**changes), []
    module.vision.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    for progress, terms in ((0.0, early), (0.49, early), (0.5, late), (0.9, late)):
        assert set(module.losses(batch(), progress=progress)) == terms
        views = 2 if "mcl" in terms else len(terms)
        assert encoded.pop() == 4 * views


def test_before_its_start_the_contrast_leaves_no_trace_in_the_gradients() -> None:
    found = []
    for weight in (0.0, 5.0):
        module = built(mcl_weight=weight)
        torch.manual_seed(3)
        torch.stack(list(module.losses(batch(), progress=0.4).values())).sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_multiply_their_terms() -> None:
    def terms(**changes: object) -> dict[str, float]:
        module = built(**changes)
        torch.manual_seed(1)
        return {name: term.item() for name, term in module.losses(batch(), progress=0.9).items()}

    plain, weighted = terms(), terms(cmr_weight=2.0, md_weight=10.0, mcl_weight=0.5)
    for name, factor in (("cmr", 2.0), ("md", 10.0), ("mcl", 0.5)):
        assert weighted[name] == pytest.approx(factor * plain[name], rel=1e-5)


def test_the_contrast_brings_the_two_views_of_a_crop_together_and_trains_both_sides() -> None:
    module, studies = built(contrast_from=0.0, cmr_weight=0.0, md_weight=0.0, hidden_share=0.5), batch()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        terms = module.losses(studies, progress=0.0)
        assert set(terms) == {"mcl"}
        terms["mcl"].backward()
        losses.append(terms["mcl"].item())
        optimiser.step()
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert any((p != 0).any() for p in module.bank.parameters())


def test_the_contrast_pulls_on_both_views() -> None:
    leaves = [torch.randn(4, 5, requires_grad=True) for _ in range(2)]
    views = [VisionFeatures(pyramid=(), tokens=leaf[:, None], pooled=leaf) for leaf in leaves]
    built()._contrast(views[0], views[1], torch.zeros(4, dtype=torch.long)).backward()
    assert all(leaf.grad is not None and bool(leaf.grad.abs().sum() > 0) for leaf in leaves)


def test_released_contrast_reads_places_and_not_only_an_average() -> None:
    module = built(contrast_on="flattened", temperature=1.0)
    features = module.vision(torch.randn(6, 1, 16, 16, 16))
    first, second = (features.rows(slice(3 * part, 3 * part + 3)) for part in (0, 1))
    flat = [f.pyramid[-1].flatten(2).transpose(1, 2).flatten(1) for f in (first, second)]
    expected = info_nce(flat[0], flat[1], temperature=1.0)
    torch.testing.assert_close(module._contrast(first, second, torch.zeros(3, dtype=torch.long)), expected)


def test_the_sequences_of_one_study_are_never_its_negatives() -> None:
    module = built()
    features = module.vision(torch.randn(8, 1, 16, 16, 16))
    first, second = (features.rows(slice(4 * part, 4 * part + 4)) for part in (0, 1))
    turn = torch.tensor([0, 1, 0, 1])
    expected = torch.stack(
        [
            info_nce(first.pooled[turn == one], second.pooled[turn == one], temperature=module.config.temperature)
            for one in (0, 1)
        ]
    ).mean()
    torch.testing.assert_close(module._contrast(first, second, turn), expected)
    with pytest.raises(ValueError, match=r"raise loader\.batch_size"):
        module._contrast(features.rows(slice(0, 1)), features.rows(slice(1, 2)), torch.zeros(1).long())


# Trap 12. Process 0 holds three targets and process 1 five, in two turns.
BORDER, TURNS = 3, torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])


def contrast_of(rows: slice) -> tuple[Tensor, Tensor]:
    """Value and parameter gradient of the contrast over some rows of one fixed batch."""
    maker = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 8, 6, generator=maker)[:, rows]
    module = built()
    torch.manual_seed(2)
    tower = nn.Linear(6, 5)
    pooled = [tower(part) for part in inputs]
    features = [VisionFeatures(pyramid=(), tokens=one[:, None], pooled=one) for one in pooled]
    loss = module._contrast(features[0], features[1], TURNS[rows])
    loss.backward()
    assert tower.weight.grad is not None
    return loss.detach(), tower.weight.grad


def one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    value, gradient = contrast_of(slice(0, BORDER) if rank == 0 else slice(BORDER, None))
    distributed.all_reduce(gradient)  # what DDP does
    torch.save((value, gradient / 2), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_contrast_is_the_same_on_two_processes_with_parts_of_the_batch(tmp_path: Path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    value, gradient = contrast_of(slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found[0], value)
        torch.testing.assert_close(found[1], gradient)


def test_only_templates_of_the_batch_get_a_gradient() -> None:
    """Trap 8."""
    only_t1w = torch.tensor([[True, False, False]] * 2)
    module = built()
    torch.stack(list(module.losses(batch(acquired=only_t1w), progress=0.9).values())).sum().backward()
    grads = {name: module.bank.values[name].grad for name in SEQUENCES}
    assert grads["t1w"].abs().sum() > 0
    assert grads["flair"] is None and grads["dwi"] is None


def test_in_the_first_phase_of_the_released_run_both_views_are_filled_from_the_template() -> None:
    module, studies = with_templates(built(template_until=0.2, sequences_per_study=None)), batch()
    targets = module.draw_targets(studies)
    for progress, template in ((0.0, True), (0.19, True), (0.2, False), (0.9, False)):
        views = module.make_views(studies, targets, progress=progress)
        for row in range(len(targets.study)):
            filled = views["cmr"].filled[row][views["cmr"].hidden[row]]
            expected = template or int(targets.study[row]) == 3
            assert bool(filled.isclose(torch.tensor(10.0 + int(targets.channel[row]))).all()) is expected
        # Two views with one mask would be one view.
        assert not torch.equal(views["cmr"].hidden, views["md"].hidden)


def test_the_mae_control_has_the_same_encoder_and_decoder_and_neither_partner_nor_template() -> None:
    ours, control = brainmvp.tiny().build(SEQUENCES), brainmvp.mae().build(SEQUENCES)
    for part in ("vision", "decoder"):
        shapes = [{n: v.shape for n, v in getattr(m, part).state_dict().items()} for m in (ours, control)]
        assert shapes[0] == shapes[1]
    assert control.bank is None
    assert brainmvp.PRESETS["mae"] == brainmvp.PRESETS["tiny"]
    module = built(filler="zero", md_weight=0.0, mcl_weight=0.0)
    views = module.make_views(batch(), module.draw_targets(batch()), progress=0.9)
    assert set(views) == {"cmr"}
    assert (views["cmr"].filled[views["cmr"].hidden] == 0).all()


def test_a_crop_that_blocks_do_not_tile_is_hidden_up_to_its_edge() -> None:
    module, studies = built(), batch(shape=(18, 16, 13))
    views = module.make_views(studies, module.draw_targets(studies), progress=0.9)
    assert views["md"].hidden.shape == (4, 1, 18, 16, 13)
    assert 0.7 < views["md"].hidden.float().mean() < 0.97
    assert all(term.isfinite() for term in module.losses(studies, progress=0.9).values())


def test_the_share_of_hidden_voxels_is_the_one_asked_for() -> None:
    for share in (0.875, 0.5):
        module = built(hidden_share=share)
        view = module.make_views(batch(), module.draw_targets(batch()), progress=0.0)["cmr"]
        assert view.hidden.float().mean().item() == pytest.approx(share)


def test_encoding_gives_what_the_backbone_says_and_zeros_where_nothing_was_acquired() -> None:
    module, studies = built().eval(), batch()
    features = module.encode(studies)
    assert features.shape == (4, 3, 16)
    assert (features[~ACQUIRED] == 0).all() and (features[ACQUIRED] != 0).any()
    torch.testing.assert_close(features[1, 2], module.backbone()(studies.volumes[1:2, 2:3]).pooled[0])
    assert features.requires_grad
    with pytest.raises(NotImplementedError, match="no text side"):
        module.align_volumes(studies)


def test_templates_come_for_every_channel_of_a_batch() -> None:
    module, studies = with_templates(built()), batch()
    found = module.templates(studies)
    assert found.shape == studies.volumes.shape
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], torch.full((4, 16, 16, 16), 10.0 + channel))
    with pytest.raises(NotImplementedError, match="fill absent sequences with zero"):
        built(filler="zero", md_weight=0.0, mcl_weight=0.0).templates(studies)


def test_templates_end_as_what_a_sequence_looks_like_on_average() -> None:
    """MD learns: a small run on studies that are one mean image a sequence plus noise, read at shifting places."""
    torch.manual_seed(0)
    coarse = torch.randn(2, 1, 6, 6, 6)
    means = nn.functional.interpolate(coarse, size=(24, 24, 24), mode="trilinear")[:, 0]
    grid = TemplateBank.Config(origin_mm=(0.0, 0.0, 0.0), spacing_mm=(1.0, 1.0, 1.0), shape=(24, 24, 24), gain=10.0)
    settings = config(templates=grid, mcl_weight=0.0, cmr_weight=0.0)
    module = settings.build(("t1w", "flair"))
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(100):
        starts = torch.randint(0, 9, (6, 3))
        crops = torch.stack([means[:, a : a + 16, b : b + 16, c : c + 16] for a, b, c in starts.tolist()])
        made = batch(acquired=torch.ones(6, 2, dtype=torch.bool))
        affine = made.affine.clone()
        affine[:, :3, 3] = starts.float()
        slots = {slot: getattr(made, slot) for slot in Batch.__slots__}
        noisy = Batch(
            **slots
            | {"volumes": crops + 0.5 * torch.randn_like(crops), "affine": affine, "sequences": ("t1w", "flair")}
        )
        optimiser.zero_grad()
        torch.stack(list(module.losses(noisy, progress=0.0).values())).sum().backward()
        optimiser.step()
    learned = torch.stack([module.bank.whole(name) for name in ("t1w", "flair")]).detach()
    table = np.corrcoef(torch.cat([learned.flatten(1), means.flatten(1)]).numpy())[:2, 2:]
    assert table[0, 0] > 0.5 and table[1, 1] > 0.5
    assert abs(table[0, 1]) < 0.3 and abs(table[1, 0]) < 0.3


def run_config(**changes: object) -> RunConfig:
    grid = TemplateBank.Config(origin_mm=(0.0, 0.0, 0.0), spacing_mm=(1.0, 1.0, 1.0), shape=(10, 10, 10))
    return tiny_run.tiny_config(recipe=config(templates=grid, vision=PlainConv.Config(widths=(8,), blocks=(0,)))).but(
        **{"save_every_steps": 4, **changes}
    )


def test_a_run_that_was_stopped_goes_on_exactly_templates_and_all(tmp_path: Path) -> None:
    """Trap 8: the released code throws the templates away on a resume."""
    store = tiny_run.write_tiny_store(tmp_path)
    straight = pretrain(run_config(), store, tmp_path / "straight")

    def stop(step: object, of: int) -> None:
        if getattr(step, "number", 0) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        pretrain(run_config(), store, tmp_path / "stopped", progress=stop)
    assert not (tmp_path / "stopped" / "templates").exists()
    held = read_resume(tmp_path / "stopped" / "checkpoints" / "00000003").weights
    assert held["bank.values.t1w"].abs().sum() > 0
    resumed = pretrain(run_config(), store, tmp_path / "stopped")
    assert (straight / "weights.safetensors").read_bytes() == (resumed / "weights.safetensors").read_bytes()
    assert torch.equal(
        load_checkpoint(resumed).recipe.bank.whole("t1w"), load_checkpoint(straight).recipe.bank.whole("t1w")
    )
    for name in ("t1w", "flair"):
        path = tmp_path / "stopped" / "templates" / f"{name}.nii.gz"
        volume = read_nifti(path)
        np.testing.assert_array_equal(volume.voxels, load_checkpoint(resumed).recipe.bank.whole(name).detach().numpy())
        assert path.read_bytes() == (tmp_path / "straight" / "templates" / f"{name}.nii.gz").read_bytes()


def test_an_exported_template_says_that_it_was_learned_from_simulated_data(tmp_path: Path) -> None:
    import nibabel

    for simulated in (True, False):
        built().artefacts(tmp_path, simulated=simulated)
        words = str(nibabel.load(tmp_path / "templates" / "dwi.nii.gz").header["descrip"])
        assert ("simulated" in words) is simulated and "template of dwi" in words


def test_presets_hold_the_values_of_the_paper_and_of_the_released_code() -> None:
    paper, released = brainmvp.paper(), brainmvp.released()
    assert (paper.cmr_weight, paper.md_weight, paper.mcl_weight, paper.hidden_share) == (1, 1, 1, 0.875)
    assert (released.cmr_weight, released.md_weight, released.mcl_weight, released.hidden_share) == (1, 10, 1, 0.8)
    assert (paper.error, released.error, paper.counted, released.counted) == ("l2", "mse", "crop", "crop")
    assert (released.temperature, released.contrast_on, released.projection) == (1.0, "flattened", None)
    assert (released.template_until, paper.template_until) == (0.2, 0.0)
    assert paper.contrast_from == pytest.approx(1000 / 1500)
    assert paper.block_voxels == released.block_voxels == 8
    assert released.templates.scaling == "minmax"
    for name in brainmvp.PRESETS:
        run = RunConfig.named(f"brainmvp:{name}")
        assert run.recipe == getattr(brainmvp, name)()
    with torch.device("meta"):
        module = released.build(tuple(f"s{number}" for number in range(8)))
    # The released checkpoint has 105.7 million; its decoder holds 12 million that it never uses.
    assert sum(p.numel() for p in module.vision.parameters()) == 22_038_464
    assert sum(p.numel() for p in module.bank.parameters()) == 8 * 240 * 240 * 155


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_papers_presets_train_around_a_small_uniformer(preset: str) -> None:
    torch.manual_seed(0)
    settings = getattr(brainmvp, preset)().but(vision=VisionEncoder.Config.named("uniformer:tiny"), templates=GRID)
    module = settings.build(SEQUENCES)
    for progress in (0.0, 0.9):
        terms = module.losses(batch(shape=(32, 16, 24)), progress=progress)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        assert total.isfinite() and ("mcl" in terms) is (progress > 0.5)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.vision.parameters())


def test_settings_that_could_not_train_are_refused() -> None:
    for changes, words in (
        ({"cmr_weight": 0.0, "md_weight": 0.0}, "nothing would be minimised"),
        ({"template_until": 0.2, "filler": "zero"}, "never reads a template"),
        ({"contrast_on": "flattened", "projection": 8}, "depends on the crop"),
        ({"vision": PlainConv.Config(in_channels=2)}, "a sequence at a time"),
    ):
        values = {field: getattr(config(), field) for field in BrainMVP.Config.model_fields}
        with pytest.raises(ValueError, match=words):
            BrainMVP.Config(**values | changes)
    assert isinstance(Recipe.Config.named("brainmvp:mae"), BrainMVP.Config)


def test_a_batch_of_one_is_refused_before_the_contrast_begins() -> None:
    """Else after two thirds of the run."""
    alone = batch(acquired=ACQUIRED[:1])
    for progress in (0.0, 0.9):
        with pytest.raises(ValueError, match="two or more studies in a batch"):
            built().losses(alone, progress=progress)
    assert "mcl" not in built(mcl_weight=0.0).losses(alone, progress=0.9)


def test_half_precision_gives_nearly_the_same_terms() -> None:
    found = []
    for on in (False, True):
        module = built()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            found.append(module.losses(batch(), progress=0.9))
    for name, term in found[0].items():
        torch.testing.assert_close(found[1][name].float(), term, atol=0.1, rtol=0.05)


def test_the_background_weighs_as_it_is_set() -> None:
    """Air is 0 or below: with half of a volume air, its share of the error moves with its weight."""
    studies = batch()
    studies.volumes[:, :, :8] = 0.0
    terms = []
    for weight in (1.0, 0.1):
        torch.manual_seed(0)
        terms.append(built(background_weight=weight).losses(studies, progress=0.0)["cmr"].item())
    assert terms[0] != pytest.approx(terms[1], rel=1e-3)


def test_every_part_of_the_model_learns() -> None:
    module = built(projection=8, sequences_per_study=None)
    torch.stack(list(module.losses(batch(), progress=0.9).values())).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_view_is_frozen() -> None:
    voxels = torch.zeros(1, 1, 2, 2, 2)
    with pytest.raises(AttributeError):
        View(filled=voxels, hidden=voxels > 0).filled = voxels  # type: ignore[misc]
