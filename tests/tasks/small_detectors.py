"""Small detectors around an untrained encoder, and a batch for them; nothing in it is of a person."""

import torch
from torch import nn

from tomoglot.batches.batch import Batch
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes import brainmvp
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.heads.detector import Detector, DetectorSettings

SEQUENCES = ("t1w", "flair", "dwi")
FINDINGS = ("infarct", "mass", "normal")
VISION = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
SMALL = DetectorSettings(width=16, heads=2, layers=1, token_stride=4, text="learned", dropout=0.0)
NETS = {
    "neither": SMALL,
    "csa": SMALL.but(aggregation=True),
    "cct": SMALL.but(fusion="cct"),
    "both": SMALL.but(aggregation=True, fusion="cct"),
}


def some_recipe() -> Recipe:
    torch.manual_seed(0)
    return brainmvp.tiny().but(vision=VISION).build(SEQUENCES)


def detector(settings: DetectorSettings, recipe: Recipe | None = None, *, seed: int = 0, **given: object) -> Detector:
    recipe = recipe or some_recipe()
    torch.manual_seed(seed)
    net = Detector(recipe, settings, FINDINGS, embedding=16, **given)  # type: ignore[arg-type]
    nn.init.normal_(net.head.weight, std=0.5)
    return net.eval()


def batch(studies: int = 4, *, seed: int = 0) -> Batch:
    maker = torch.Generator().manual_seed(seed)
    acquired = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, True, True]])
    labels = (torch.rand(studies, 3, generator=maker) < 0.5).float()
    return Batch(
        volumes=torch.randn(studies, 3, 16, 16, 16, generator=maker) * acquired[:studies, :, None, None, None],
        acquired=acquired[:studies],
        sequences=SEQUENCES,
        affine=torch.eye(4).expand(studies, 4, 4).contiguous(),
        studies=tuple(f"k{n}" for n in range(studies)),
        subjects=torch.arange(studies),
        reports=(None,) * studies,
        labels=labels,
        labelled=torch.ones(studies, 3, dtype=torch.bool),
        findings=FINDINGS,
    )
