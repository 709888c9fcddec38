"""A process that exports in children that end without a word at the flush or rename that it is told, one number a line.

It forks, which a process with threads, such as that of the tests, must not do. It prints the exit code of each child: 9 if it got
so far, 0 if the export was done before.
"""

import os
import sys

from mads.cli import main


def export_until(call, folder, out):
    count = 0

    def counted(original):
        def function(*arguments):
            nonlocal count
            count += 1
            if count == call:
                os._exit(9)
            return original(*arguments)

        return function

    os.fsync, os.rename = counted(os.fsync), counted(os.rename)
    os.dup2(2, 1)  # what it prints is no answer
    return main(["export", folder, "--out", out, "--max-shard-gb", "0.00005"])


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                os._exit(export_until(int(line), *sys.argv[1:]))
            finally:
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
