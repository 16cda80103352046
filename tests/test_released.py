"""A released file becomes a run that tasks can read, and a start for a run; what does not fit is said or refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tiny_run import tiny_config, write_tiny_store
from tomoglot.checkpoint import load_checkpoint
from tomoglot.encoders import uniformer
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.recipes import brainmvp
from tomoglot.recipes.recipe import Recipe
from tomoglot.released import TEMPLATE_SEQUENCES, import_released, read_encoder, start_from
from tomoglot.run import pretrain
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.tasks.embeddings import seen_note

SEQUENCES = ("t1w", "flair")


def released_state(encoder: VisionEncoder, *, templates: int = 8) -> dict[str, torch.Tensor]:
    """The tensors of a released file, with an encoder of any size; the decoder's names as MONAI's blocks have them."""
    state = {f"encoder.uniformer.{name}": value for name, value in encoder.state_dict().items()}
    state["decoder.decoder5.transp_conv.conv.weight"] = torch.zeros(4, 3, 2, 2, 2)
    state["decoder.proj1.proj.bias"] = torch.zeros(3)
    state["decoder.out_1.conv.conv.weight"] = torch.zeros(1, 3, 1, 1, 1)
    state["rep_template"] = torch.arange(templates).float()[:, None, None, None].expand(templates, 4, 4, 3).clone()
    return state


def write_released(path: Path, encoder: VisionEncoder, *, prefix: str = "", templates: int = 8) -> Path:
    """A whole training state, as the released training script writes it."""
    state = {prefix + name: value for name, value in released_state(encoder, templates=templates).items()}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}
    whole = {"current_epoch": 1500, "state_dict": state, "optimizer": {"state": moments}, "val_best": 1e8}
    torch.save(whole, path)
    return path


@pytest.fixture
def encoder() -> VisionEncoder:
    torch.manual_seed(1)
    built = uniformer.tiny().build()
    for value in built.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
    return built.eval()


def imported(tmp_path: Path, file: Path, **changes):
    settings = {
        "sequences": SEQUENCES,
        "plan": Plan(),
        "encoder": "uniformer:tiny",
        "recipe": "brainmvp:tiny",
    } | changes
    return import_released(file, tmp_path / "run", **settings)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_file_is_a_run_whose_encoder_computes_the_same(tmp_path, encoder, prefix):
    coverage = imported(tmp_path, write_released(tmp_path / "model.pt", encoder, prefix=prefix))
    assert coverage.share == 1.0 and (coverage.missing, coverage.reshaped, coverage.unexpected) == ((), (), ())
    assert sorted(coverage.left_out) == [
        "decoder.decoder5.transp_conv.conv.weight",
        "decoder.out_1.conv.conv.weight",
        "decoder.proj1.proj.bias",
        "rep_template",
    ]
    loaded = load_checkpoint(tmp_path / "run")
    volume = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.recipe.backbone().eval()(volume).pooled, encoder(volume).pooled)
    assert loaded.recipe.sequences == SEQUENCES and loaded.card.plan == Plan()
    assert not (loaded.folder / "resume").exists()


def test_the_card_and_every_score_say_that_the_subjects_are_not_known(tmp_path, encoder):
    imported(tmp_path, write_released(tmp_path / "model.pt", encoder))
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.card.origin.startswith("model.pt, sha256 ")

    class NoStudies:
        rows = ()

    (note,) = seen_note(loaded, NoStudies(), "test")  # type: ignore[arg-type]
    assert "NOT SURE TO BE HELD OUT" in note and "model.pt" in note
    account = json.loads((tmp_path / "run" / "import.json").read_text())
    assert account["share"] == 1.0 and "rep_template" in account["left_out"] and account["origin"] == loaded.card.origin
    assert str(tmp_path) not in json.dumps(account)


def test_templates_come_back_by_sequence_and_only_where_their_order_is_known(tmp_path, encoder):
    found = read_encoder(write_released(tmp_path / "model.pt", encoder))
    assert tuple(found.templates) == TEMPLATE_SEQUENCES
    for place, name in enumerate(("flair", "t1w", "t1c", "t2w", "mra", "pd", "dwi", "adc")):
        assert found.templates[name].shape == (4, 4, 3) and (found.templates[name] == place).all()
    assert not read_encoder(write_released(tmp_path / "four.pt", encoder, templates=4)).templates


def test_an_encoder_of_another_size_is_refused_and_leaves_no_run(tmp_path, encoder):
    file = write_released(tmp_path / "model.pt", encoder)
    with pytest.raises(ValueError, match=r"nothing was loaded.*missing"):
        imported(tmp_path, file, encoder="uniformer:narrow")
    with pytest.raises(ValueError, match="nothing was loaded"):
        imported(tmp_path, file, encoder="plain_conv:tiny")
    assert not (tmp_path / "run").exists()


def test_what_nobody_expected_is_not_called_left_out(tmp_path, encoder):
    state = released_state(encoder) | {"head.weight": torch.zeros(2)}
    save_file(state, tmp_path / "model.safetensors")
    coverage = imported(tmp_path, tmp_path / "model.safetensors")
    assert coverage.unexpected == ("head.weight",) and "rep_template" in coverage.left_out
    assert "unexpected: 1: head.weight" in coverage.describe() and "left out: 4" in coverage.describe()


class Hostile:
    ran = False

    def __reduce__(self):
        return (setattr, (Hostile, "ran", True))


def test_a_released_file_with_code_is_refused_and_the_code_does_not_run(tmp_path, encoder):
    state = released_state(encoder)
    torch.save({"state_dict": state, "optimizer": Hostile()}, tmp_path / "zipped.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"state_dict": {"a": Hostile()}}, protocol=2))
    for name in ("zipped.pt", "plain.pt"):
        with pytest.raises(ValueError, match="holds more than tensors"):
            imported(tmp_path, tmp_path / name)
    assert not Hostile.ran and not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_not_written_into(tmp_path, encoder):
    file = write_released(tmp_path / "model.pt", encoder)
    imported(tmp_path, file)
    with pytest.raises(ValueError, match="run is not an empty folder"):
        imported(tmp_path, file)


class Banked(Recipe):
    """An encoder a sequence, or one for all."""

    def __init__(self, encoders: dict[str, VisionEncoder]) -> None:
        super().__init__()
        self.sequences, self.encoders = tuple(encoders), nn.ModuleDict(encoders)

    def losses(self, batch, *, progress):
        raise AssertionError

    def encode(self, batch):
        raise AssertionError

    def backbone(self, sequence=None):
        return self.encoders[sequence or self.sequences[0]]


def test_a_start_fills_every_encoder_of_a_bank(tmp_path, encoder):
    recipe = Banked({name: uniformer.tiny().build() for name in SEQUENCES})
    start_from(recipe, read_encoder(write_released(tmp_path / "model.pt", encoder)))
    for name in SEQUENCES:
        for key, value in recipe.backbone(name).state_dict().items():
            torch.testing.assert_close(value, encoder.state_dict()[key])


def test_a_run_of_ours_is_read_like_a_released_file(tmp_path, encoder):
    imported(tmp_path, write_released(tmp_path / "model.pt", encoder))
    found = read_encoder(tmp_path / "run")
    recipe = Banked({"t1w": uniformer.tiny().build()})
    assert start_from(recipe, found).share == 1.0
    torch.testing.assert_close(recipe.backbone().state_dict(), dict(encoder.state_dict()))
    assert found.origin.startswith("checkpoint 00000000 of run")


def test_every_name_of_the_released_encoder_finds_its_place(tmp_path, shared):
    """The released names at the released depth; narrow, so that the file is small (full shapes: test_uniformer)."""
    lines = (shared / "parity" / "brainmvp_uniformer_small_keys.tsv").read_text().splitlines()[1:]
    names = [line.split("\t")[0] for line in lines]
    deep = uniformer.small().but(head_width=16, widths=(16, 32, 48, 64))
    shapes = {f"encoder.uniformer.{name}": value for name, value in deep.build().state_dict().items()}
    tensors = {f"module.{name}": torch.full_like(shapes[name], 0.5) for name in names}
    tensors |= {"module.decoder.out_1.conv.conv.bias": torch.zeros(1), "module.rep_template": torch.zeros(8, 2, 2, 2)}
    torch.save({"state_dict": tensors, "current_epoch": 1500}, tmp_path / "model.pt")
    coverage = imported(tmp_path, tmp_path / "model.pt", encoder=deep)
    assert len(coverage.matched) == len(names) == len(shapes) and coverage.share == 1.0
    assert (coverage.missing, coverage.unexpected, coverage.reshaped, len(coverage.left_out)) == ((), (), (), 2)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_encoder_stays_to_the_bit_with_its_statistics_while_the_rest_learns(tmp_path, encoder, frozen):
    settings = {
        "recipe": brainmvp.tiny().but(vision=uniformer.tiny(), block_voxels=4),
        "loader.crop_voxels": (16, 16, 16),
        "schedule.steps": 2,
        "save_every_steps": 1,
        "encoder_weights": str(write_released(tmp_path / "model.pt", encoder)),
        "encoder_frozen": frozen,
    }
    out = tmp_path / "out"
    store = write_tiny_store(tmp_path, subjects=4)
    pretrain(tiny_config(**settings), store, out)
    # On from the first step, as a run that was stopped there.
    for late in (out / "checkpoints").iterdir():
        if late.name > "00000001":
            shutil.rmtree(late)
    before = load_checkpoint(out).recipe.state_dict()
    pretrain(tiny_config(**settings), store, out)
    after, theirs = load_checkpoint(out).recipe, encoder.state_dict()
    moved = {name for name, value in after.backbone().state_dict().items() if not torch.equal(value, theirs[name])}
    assert moved == set() if frozen else any("running_mean" in name for name in moved)
    assert any(not torch.equal(before[name], value) for name, value in after.state_dict().items())


def test_a_run_starts_from_a_released_encoder_once_and_records_it(tmp_path, encoder):
    file = write_released(tmp_path / "model.pt", encoder)
    store = write_tiny_store(tmp_path, subjects=4)
    small = brainmvp.tiny().but(vision=uniformer.tiny(), block_voxels=4)
    settings = {
        "recipe": small,
        "loader.crop_voxels": (16, 16, 16),
        "schedule.learning_rate": 1e-9,
        "schedule.batches_per_step": 1,
        "schedule.steps": 2,
        "save_every_steps": 1,
        "encoder_weights": str(file),
    }
    config = tiny_config(**settings)
    pretrain(config, store, tmp_path / "out")
    account = json.loads((tmp_path / "out" / "encoder_weights.json").read_text())
    assert account["share"] == 1.0 and account["origin"].startswith("model.pt, sha256")
    loaded = load_checkpoint(tmp_path / "out")
    trained = loaded.recipe.backbone()
    assert loaded.card.origin == account["origin"]
    notes = seen_note(loaded, Store.open(store), "train")
    assert any("began from model.pt" in note for note in notes) and any(
        "NOT HELD OUT: 4 of 4" in note for note in notes
    )
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value, encoder.get_parameter(name), atol=1e-5, rtol=0)
    (tmp_path / "model.pt").unlink()
    for late in (tmp_path / "out" / "checkpoints").iterdir():
        if late.name > "00000001":
            shutil.rmtree(late)
    pretrain(config, store, tmp_path / "out")  # goes on without the file, from its own weights
    assert load_checkpoint(tmp_path / "out").card.origin == account["origin"]
    write_released(tmp_path / "model.pt", encoder)
    with pytest.raises(ValueError, match="nothing was loaded"):
        pretrain(config.but(**{"recipe.vision": uniformer.narrow()}), store, tmp_path / "other")
    assert not (tmp_path / "other").exists()
