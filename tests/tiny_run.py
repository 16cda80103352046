"""A recipe, a store and a run so small that a test may start many. It answers to a name inside the package."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tomoglot.batches.loader import LoaderConfig
from tomoglot.recipes.recipe import Recipe
from tomoglot.run import RunConfig, pretrain
from tomoglot.schedule import Schedule
from tomoglot.store.plan import Plan
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Report, Series, Study, Volume

# Settings are only ever looked up inside tomoglot: this file stands in for a recipe's.
NAME = "tomoglot.recipes.tiny_for_tests"
sys.modules[NAME] = sys.modules[__name__]
PRESETS = {"tiny": {"schedule.steps": 7}}


class TinyRecipe(Recipe):
    """Reads the mean of hidden voxels; hides at random, so that a wrong random state shows in the weights."""

    __module__ = NAME

    class Config(Recipe.Config):
        __module__ = NAME
        width: int = 3
        poison_at: float | None = None

        def build(self, sequences):
            return TinyRecipe(self, sequences)

    def __init__(self, config, sequences):
        super().__init__()
        self.config, self.sequences = config, sequences
        self.convolution = nn.Conv3d(len(sequences), config.width, 2, stride=2)
        self.norm = nn.BatchNorm3d(config.width)
        self.head = nn.Linear(config.width, len(sequences))
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.calls = 0

    def losses(self, batch, *, progress):
        self.calls += 1
        if self.calls == int(os.environ.get("TINY_KILL_AT_CALL", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        hidden = batch.volumes * (torch.rand_like(batch.volumes) > 0.5)
        features = self.norm(self.convolution(hidden)).mean((2, 3, 4))
        told = self.head(features) * self.log_temperature.exp()
        terms = {"fill": (told - batch.volumes.mean((2, 3, 4))).square().mean()}
        if progress >= 0.5:
            terms["late"] = 0.1 * told.square().mean()
        if self.config.poison_at is not None and progress >= self.config.poison_at:
            terms["poison"] = terms["fill"] * float("nan")
        return terms

    @torch.no_grad()
    def encode(self, batch):
        return torch.stack(
            [self.convolution(batch.volumes).mean((2, 3, 4)) + n for n in range(len(self.sequences))], dim=1
        )


def tiny():
    return TinyRecipe.Config()


def write_tiny_store(folder: Path, *, subjects: int = 7, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    studies = []
    for number in range(subjects):
        series = []
        for sequence in ("t1w", "flair"):
            path = folder / "files" / f"{number}_{sequence}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            voxels = rng.integers(1, 900, (10, 10, 10)).astype(np.int16)
            write_nifti(path, Volume(voxels=voxels, affine=np.eye(4)))
            series.append(Series(sequence=sequence, path=path))
        text = f"FINDINGS: simulated study {number}."
        studies.append(
            Study(
                subject=f"sub-{number:02d}",
                study=f"ses-{number:02d}",
                series=tuple(series),
                report=Report(text=text, findings=text),
                split="train",
                simulated=True,
            )
        )
    write_store(Sources(studies=studies, rejected=[]), folder / "store", Plan())
    return folder / "store"


def tiny_config(**changes) -> RunConfig:
    config = RunConfig(
        recipe=TinyRecipe.Config(),
        loader=LoaderConfig(batch_size=2, crop_voxels=(8, 8, 8), workers=0, seed=3),
        schedule=Schedule(steps=8, warmup_steps=2, learning_rate=1e-2, batches_per_step=2, accelerator="cpu"),
        seed=5,
        save_every_steps=2,
        log_every_steps=3,
        keep_last=None,
    )
    return config.but(**changes)


def main(config: str, store: str, out: str, terminate_at: str = "0") -> None:
    """Run in a process of its own, which gets SIGTERM when it has made a step."""

    def progress(made, _steps):
        if made.number == int(terminate_at):
            os.kill(os.getpid(), signal.SIGTERM)

    pretrain(RunConfig.load(Path(config)), Path(store), Path(out), progress=progress)


def run_apart(config: RunConfig, store: Path, out: Path, *, terminate_at: int = 0, kill_at_call: int = 0):
    """`main` as a process; `kill_at_call` is the batch in whose forward pass it kills itself (SIGKILL)."""
    settings = out.with_name(f"{out.name}.json")
    settings.write_text(config.to_json())
    environment = os.environ | {"TINY_KILL_AT_CALL": str(kill_at_call), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(settings), str(store), str(out), str(terminate_at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
