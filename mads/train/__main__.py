"""One worker: `deepspeed --module mads.train OVERRIDES`, `torchrun -m mads.train OVERRIDES`, or started by `mads train`."""

import sys

from mads.train.signals import Notice

if __name__ == "__main__":
    notice = Notice().listen()  # before the seconds of the imports
    from mads.train.worker import main

    sys.exit(main(sys.argv[1:], notice))
