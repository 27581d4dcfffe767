"""A study of the tiny jobs whose workers are forks of it: `python -m tests.jobs.forking_study STUDY.toml`."""

import multiprocessing
import sys

from tests.jobs.study_jobs import find
from trec_semid.core.config import load_config
from trec_semid.jobs.study import StudyConfig, run

FORK = multiprocessing.get_context("fork")

if __name__ == "__main__":
    multiprocessing.get_context = lambda method=None: FORK
    run(load_config(StudyConfig, [sys.argv[1]]), find)
