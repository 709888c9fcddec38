"""One worker: `deepspeed --module mads.train OVERRIDES`, `torchrun -m mads.train OVERRIDES`, or started by `mads train`."""

import sys

from mads.train.worker import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
