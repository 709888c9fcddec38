"""Exit codes of `mads train` and of each of its workers, for scripts that decide what to do next (docs/faults.md)."""

DONE = 0
FAILED = 1
BAD_INPUT = 2
PREEMPTED = 85  # asked to stop by a signal; a checkpoint of the last step is there: the same command goes on from it
HUNG = 86  # a rank hung or died; every other one has said which: the same command goes on from the last checkpoint
INTERRUPTED = 130
