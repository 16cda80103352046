"""A tiny simulated store of two organs for tests of detection: a bright or a dark cube is what there is to find."""

from pathlib import Path

import numpy as np

from tomoglot.batches.loader import LoaderConfig
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes import brainmvp
from tomoglot.recipes.recipe import Recipe
from tomoglot.schedule import Schedule
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume

SEQUENCES = ("arterial", "flair", "t2w")
LOADER = LoaderConfig(batch_size=8, crop_voxels=(16, 16, 16), workers=0)
QUICK = Schedule(steps=30, warmup_steps=2, learning_rate=5e-3, accelerator="cpu")
# The t2w is common to both organs; in `cyst` and `infarct` a cube is bright, in `hcc` and `mass` it is dark.
ORGANS = {"brain": ("flair", ("infarct", "mass")), "liver": ("arterial", ("cyst", "hcc"))}


def volume(shift: float, rng: np.random.Generator) -> Volume:
    voxels = rng.normal(100, 10, (16, 16, 16))
    voxels[4:12, 4:12, 4:12] += shift
    return Volume(voxels=voxels.astype(np.float32), affine=np.eye(4))


def make_store(folder: Path, *, studies: int = 72) -> Store:
    """Every third study is normal; one in five lacks the t2w, another one in five the organ's own sequence."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(studies):
        organ = ("brain", "liver")[number % 2]
        own, findings = ORGANS[organ]
        kind = (*findings, "normal")[number // 2 % 3]
        series = []
        for sequence in ("t2w", own)[int(number % 5 == 0) : 1 if number % 5 == 1 else 2]:
            path = folder / "files" / f"{number}_{sequence}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_nifti(path, volume({findings[0]: 60.0, findings[1]: -60.0}.get(kind, 0.0), rng))
            series.append(Series(sequence=sequence, path=path))
        labels = {name: float(name == kind) for name in (*findings, "normal")}
        split = ("train", "val", "test", "train")[number // 6 % 4]
        made.append(
            Study(subject=f"s{number}", study="1", series=tuple(series), labels=labels, split=split, simulated=True)
        )
    write_store(Sources(studies=made, rejected=[]), folder / "store", Plan())
    return Store.open(folder / "store")


def make_recipe(*, seed: int = 0) -> Recipe:
    """One small encoder for all sequences; nothing was trained."""
    import torch

    torch.manual_seed(seed)
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    return brainmvp.tiny().but(vision=vision).build(SEQUENCES)
