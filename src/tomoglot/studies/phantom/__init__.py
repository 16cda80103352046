"""Simulated studies: anatomy, MR and CT physics, lesions with truth, and reports derived from it; three cohorts."""

from tomoglot.studies.phantom.cohort import FINDINGS, generate
from tomoglot.studies.phantom.files import COHORTS, write_cohort, write_study
from tomoglot.studies.phantom.montage import draw_montage
from tomoglot.studies.phantom.signal import SEQUENCES
from tomoglot.studies.phantom.simulated import PhantomStudy

__all__ = [
    "COHORTS",
    "FINDINGS",
    "SEQUENCES",
    "PhantomStudy",
    "draw_montage",
    "generate",
    "write_cohort",
    "write_study",
]
