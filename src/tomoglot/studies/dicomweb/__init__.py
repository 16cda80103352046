"""Studies from a PACS over DICOMweb (PS3.18): found by QIDO-RS, fetched by WADO-RS, resumable, from one origin only."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("httpx") is None or importlib.util.find_spec("pydicom") is None:
    raise ValueError("reading from a PACS needs httpx and pydicom: pip install 'tomoglot[dicom]'")

from tomoglot.studies.dicomweb.listing import Wanted, read_identifiers
from tomoglot.studies.dicomweb.origin import Credentials, Limits, Stopped, read_credentials
from tomoglot.studies.dicomweb.pull import Pulled, pull

__all__ = ("Credentials", "Limits", "Pulled", "Stopped", "Wanted", "pull", "read_credentials", "read_identifiers")
