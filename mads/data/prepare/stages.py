"""The stages of a preparation in their order, and the tasks of each. All tasks of a stage are done before those of the next."""

from __future__ import annotations

from pathlib import Path

from mads.data.prepare.board import Tally
from mads.data.prepare.fit import draw_sample, fit, fit_by_sample, sampled_groups, write_references
from mads.data.prepare.job import Job
from mads.data.prepare.plan import Plan, make_plan
from mads.data.prepare.seal import seal
from mads.data.prepare.shards import write_shard
from mads.data.prepare.survey import survey_group
from mads.label.base import by_sample

_RUN = {
    "references": write_references,
    "survey": survey_group,
    "plan": make_plan,
    "sample": draw_sample,
    "fit": fit,
    "fit_by_sample": fit_by_sample,
    "shards": write_shard,
    "seal": seal,
}
STAGES = tuple(_RUN)
_OF_A_FIRST = ("sample", "fit", "fit_by_sample")  # an addition takes these from the directory


def tasks_of(job: Job, stage: str) -> list[str]:
    """Names of a stage's tasks; the stages before it are done."""
    if job.before is not None and stage in _OF_A_FIRST:
        return []
    if stage == "survey":
        indices = range(len(job.groups))
    elif stage == "sample":
        indices = sampled_groups(job, Plan.load(job))
    elif stage == "fit":
        indices = [0, *(i for i, labeller in enumerate(job.labellers.values(), 1) if not by_sample(labeller))]
    elif stage == "fit_by_sample":  # with the tokenizer
        indices = [i for i, labeller in enumerate(job.labellers.values(), 1) if by_sample(labeller)]
    elif stage == "shards":
        indices = range(len(Plan.load(job).about["shards"]))
    else:
        indices = range(1)
    return [f"{stage}-{index:05d}" for index in indices]


def task_bytes(job: Job, stage: str) -> list[int] | None:
    """Bytes of text that each task of a stage goes through, if that is known before."""
    return Plan.load(job).about["bytes"] if stage == "shards" else None


def run_task(job: Job, stage: str, task: str, scratch: Path, tally: Tally) -> list[str]:
    """Do a task. It writes below `scratch` what shall appear at the same place below the directory, and returns what there is to
    say about it.

    Raises:
        DataError: the job cannot go on.
    """
    return _RUN[stage](job, int(task.rsplit("-", 1)[1]), scratch, tally)
