"""What a job knows of itself."""

from __future__ import annotations

import pytest

from pipeline.base.errors import UserError
from pipeline.base.slurm import job_end_time, own_job_id, own_job_restarts


def test_number_of_a_job_and_of_a_task_of_an_array() -> None:
    assert own_job_id({}) is None
    assert own_job_id({"SLURM_JOB_ID": "17"}) == "17"
    assert own_job_id({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "3"}) == "15_3"


def test_restarts_of_a_job() -> None:
    assert own_job_restarts({"SLURM_RESTART_COUNT": "2"}) is None
    assert own_job_restarts({"SLURM_JOB_ID": "17"}) == 0
    assert own_job_restarts({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"}) == 2


def test_end_of_a_job() -> None:
    assert job_end_time({}) is None
    assert job_end_time({"SLURM_JOB_END_TIME": ""}) is None
    assert job_end_time({"SLURM_JOB_END_TIME": "1772366400"}) == 1772366400.0
    with pytest.raises(UserError, match="SLURM_JOB_END_TIME is 'soon': seconds since 1970 are expected"):
        job_end_time({"SLURM_JOB_END_TIME": "soon"})
