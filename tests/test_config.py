"""Settings: frozen, refused when unknown, varied by a call, and read back as the class that wrote them."""

import json

import pytest
from pydantic import ValidationError

from tomoglot.batches.loader import LoaderConfig
from tomoglot.config import Settings
from tomoglot.encoders.vision import VisionEncoder
from tomoglot.recipes.medmap import MedMAP
from tomoglot.run import RunConfig
from tomoglot.store.plan import Plan
from tomoglot.tasks import classification


def test_but_changes_a_copy_and_only_what_is_named() -> None:
    plan = Plan()
    changed = plan.but(spacing_mm=(2.0, 2.0, 2.0))
    assert plan.spacing_mm is None
    assert changed.spacing_mm == (2.0, 2.0, 2.0)
    assert changed.but(spacing_mm=None) == plan


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        Plan().codec = "lz4"  # type: ignore[misc]


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'spacing_mm'"):
        Plan().but(spacing=2)
    with pytest.raises(ValueError, match=r"schedule\.stepz: there is no setting 'stepz'; did you mean 'steps'"):
        RunConfig.named("medmap:tiny").set(["schedule.stepz=3"])


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_voxels"):
        Plan().set(["chunk_voxels=many"])
    with pytest.raises(ValueError, match="key=value"):
        Plan().set(["chunk_voxels"])


def test_json_names_its_class_and_reads_back_as_it() -> None:
    settings = RunConfig.named("medmap:tiny").set(["recipe.bank=separate", "recipe.vision=uniformer:tiny"])
    again = Settings.from_json(settings.to_json())
    assert type(again) is RunConfig
    assert again == settings
    assert json.loads(settings.to_json())["recipe"]["class"] == "tomoglot.recipes.medmap:MedMAP.Config"


def test_a_settings_file_never_reaches_outside_the_package() -> None:
    with pytest.raises(ValueError, match="not part of tomoglot"):
        Settings.from_json('{"class": "os:system"}')
    with pytest.raises(ValueError, match="is not a settings class"):
        Settings.from_json('{"class": "tomoglot.config:unknown_key"}')


def test_a_file_that_is_not_settings_says_which_file(tmp_path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        Plan.load(path)


def test_settings_that_are_right_only_together_are_changed_together() -> None:
    """Stages and blocks of an encoder must agree in number: one after the other, either would be refused."""
    tiny = VisionEncoder.Config.named("plain_conv:tiny")
    both = {"widths": (8, 16), "blocks": (0, 0)}
    assert len(tiny.but(**both).build().widths) == 2
    config = MedMAP.Config(vision=tiny)
    assert config.set(["vision.widths=[8,16]", "vision.blocks=[0,0]"]).vision.widths == (8, 16)
    replaced = config.set(["vision=plain_conv:small", "vision.groups=4"])
    assert (replaced.vision.widths, replaced.vision.groups) == ((32, 64, 128, 256), 4)


def test_a_part_that_is_not_there_begins_with_its_usual_values() -> None:
    """Else the only way to change one value of it would be to write the whole part as JSON."""
    asked = classification.Config().set(["loader.crop_voxels=[8,8,8]", "loader.workers=0"])
    assert asked.loader == LoaderConfig(crop_voxels=(8, 8, 8), workers=0)
    with pytest.raises(ValueError, match=r"loader\.crop: there is no setting 'crop'; did you mean 'crop_voxels'"):
        asked.set(["loader.crop=1"])
    with pytest.raises(ValueError, match="spacing_mm is a NoneType, it has no keys below it"):
        Plan().set(["spacing_mm.x=1"])
