"""`mads.train` of which one rank hangs in its loader: `python faulty_worker.py RANK BATCH OVERRIDES`. Batches count from 1."""

import os
import sys
import time

from mads.train.signals import Notice

if __name__ == "__main__":
    rank, batch = map(int, sys.argv[1:3])
    notice = Notice().listen()
    from mads.data.loader import Loader
    from mads.train.worker import main

    original, taken = Loader.next, [0]

    def next_or_hang(self):
        taken[0] += 1
        if taken[0] == batch and int(os.environ["RANK"]) == rank:
            time.sleep(10000)
        return original(self)

    Loader.next = next_or_hang
    sys.exit(main(sys.argv[3:], notice))
