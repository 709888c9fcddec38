"""Exit codes of `mads train` and of each of its workers, for scripts that decide what to do next (docs/faults.md)."""

DONE = 0
FAILED = 1
BAD_INPUT = 2
PREEMPTED = 85  # asked to stop by a signal; a checkpoint of the last step is there: the same command goes on from it
INTERRUPTED = 130
