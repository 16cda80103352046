"""Simulated brain studies: real average anatomy, MR physics, lesions with truth, and reports derived from it."""

from tomoglot.studies.phantom.cohort import FINDINGS, PhantomStudy, generate
from tomoglot.studies.phantom.files import write_cohort, write_study
from tomoglot.studies.phantom.montage import draw_montage
from tomoglot.studies.phantom.signal import SEQUENCES

__all__ = ["FINDINGS", "SEQUENCES", "PhantomStudy", "draw_montage", "generate", "write_cohort", "write_study"]
