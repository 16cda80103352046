"""Fixtures shared by every test."""

import os
from pathlib import Path

# One thread a process: the suite runs on several, and results must not depend on how many cores there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from jaxtyping import install_import_hook

# Shapes and types in signatures are checked while testing, in every room that holds tensors.
CHECKED = [f"tomoglot.{room}" for room in ("batches", "encoders", "objectives", "recipes", "tasks")]
install_import_hook(CHECKED, "shapes.checked")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real studies that lies beside some checkouts."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the shared reference folder is not beside this checkout")
    return folder
