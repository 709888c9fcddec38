"""A worker process from its command line to the end of training."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence

import torch

from mads.checkpoint.manifest import CheckpointError
from mads.config.compose import ConfigError, compose
from mads.config.validate import validate
from mads.data.schema import DataError
from mads.launch import exits
from mads.launch.processes import Place, become_single_process, cpu_threads, place, prepare_worker, strip_launcher_arguments
from mads.topology import Topology, grid_of, initialize_process_group, shut_down
from mads.train.signals import Notice

# What a user can mend: shown as a message, without a traceback.
USER_ERRORS = (ConfigError, DataError, CheckpointError)
LAST_WORD_S = 3.0  # rank 0 speaks for all; the others leave later, for a launcher ends every rank when the first one leaves


def main(arguments: Sequence[str], notice: Notice | None = None) -> int:
    """Run one worker; returns the exit code (mads.launch.exits). notice: listens already; None: it does from now on."""
    notice = notice or Notice().listen()
    overrides = strip_launcher_arguments(arguments)
    prepare_worker(torch.cuda.is_available())
    where = None
    try:
        where = place()
        config = compose(overrides)
        where = where or become_single_process()
        validate(config, where.world_size, torch.cuda.is_available(), overrides)
    except USER_ERRORS as error:
        return _report(error, where, 2)
    return train(config, where, notice)


def train(config, where: Place, notice: Notice | None = None) -> int:
    """Join the job, train, leave in order."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # deepspeed and torch versions do not always agree on the newest name of a collective.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Imported here: they load deepspeed, which takes seconds, and bad input should be reported at once.
    from mads.collectives import ReplicaMismatchError
    from mads.console.exchange import RankFailedError
    from mads.logging.metrics import LogError
    from mads.train.interface import NonFiniteError
    from mads.train.loop import ResumeError, Trainer

    device = choose_device(where)
    initialize_process_group("nccl" if device.type == "cuda" else "gloo", config.parallel.timeout_s)
    try:
        topology = Topology(
            grid_of(config.parallel, where.world_size), config.parallel.timeout_s, config.parallel.control_timeout_s
        )
        trainer = Trainer(config, topology, device, notice)
        trainer.run()
    except (*USER_ERRORS, ResumeError) as error:
        return _leave(_report(error, where, 2), where)
    # Raised on every rank, with names and numbers; the last one on rank 0, which tells it.
    except (NonFiniteError, ReplicaMismatchError, RankFailedError, LogError) as error:
        return _leave(_report(error, where, 1), where)
    except KeyboardInterrupt:
        return _leave(130, where)
    except Exception:
        print(f"rank {where.rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return _leave(1, where)
    shut_down()
    return exits.PREEMPTED if trainer.preempted else exits.DONE


def _report(error: Exception, where: Place | None, code: int) -> int:
    """Rank 0 tells what was wrong, once; returns the exit code."""
    if where is None or where.rank == 0:
        print(f"mads train: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(LAST_WORD_S)
    return code


def choose_device(where: Place) -> torch.device:
    """This rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(where.local_rank)
        return torch.device("cuda", where.local_rank)
    torch.set_num_threads(cpu_threads(where))
    return torch.device("cpu")


def _leave(code: int, where: Place) -> int:
    """After a failure other ranks may wait in a collective forever: end at once, so that the launcher ends the job."""
    if where.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    shut_down()
    return code
