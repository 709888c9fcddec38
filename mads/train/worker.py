"""A worker process from its command line to the end of training."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from mads.checkpoint.manifest import CheckpointError
from mads.config.compose import ConfigError, compose
from mads.config.validate import validate
from mads.data.schema import DataError
from mads.launch import exits
from mads.launch.processes import Place, become_single_process, cpu_threads, place, prepare_worker, strip_launcher_arguments
from mads.topology import Topology, grid_of, initialize_process_group, shut_down
from mads.train.pulse import Pulse
from mads.train.signals import Notice
from mads.train.watchdog import NoWatchdog, Watchdog

# What a user can mend: shown as a message, without a traceback.
USER_ERRORS = (ConfigError, DataError, CheckpointError)
START_SHARE = 0.9  # the watchdog names who hangs before the collectives give up
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
        return _report(error, where, exits.BAD_INPUT)
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
    watchdog = NoWatchdog()
    try:
        topology = Topology(
            grid_of(config.parallel, where.world_size), config.parallel.timeout_s, config.parallel.control_timeout_s
        )
        pulse = Pulse()
        watchdog = _watchdog(config, topology, where, pulse)
        trainer = Trainer(config, topology, device, notice, pulse)
        watchdog.finish_first(trainer.saver.settle)
        trainer.run()
    except (*USER_ERRORS, ResumeError) as error:
        return _leave(_report(error, where, exits.BAD_INPUT), where, watchdog, str(error))
    # Raised on every rank, with names and numbers; the last one on rank 0, which tells it.
    except (NonFiniteError, ReplicaMismatchError, RankFailedError, LogError) as error:
        return _leave(_report(error, where, exits.FAILED), where, watchdog, str(error))
    except KeyboardInterrupt:
        return _leave(exits.INTERRUPTED, where, watchdog)
    except Exception as error:
        watchdog.linger()
        print(f"rank {where.rank} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return _leave(exits.FAILED, where, watchdog, f"{type(error).__name__}: {error}")
    code = exits.PREEMPTED if trainer.preempted else exits.DONE
    with pulse.during("end"):
        shut_down()
    watchdog.leave(code)
    return code


def _watchdog(config, topology: Topology, where: Place, pulse: Pulse) -> Watchdog | NoWatchdog:
    """Collective. Until the first step, in which kernels may be compiled, its limit is what the collectives have themselves."""
    parallel = config.parallel
    if parallel.hang_timeout_s is None:
        return NoWatchdog()
    start = max(parallel.hang_timeout_s, START_SHARE * min(parallel.timeout_s, parallel.control_timeout_s))
    return Watchdog(pulse, parallel.hang_timeout_s, start, topology, where.first_host, Path(config.run_dir))


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


def _leave(code: int, where: Place, watchdog: Watchdog | NoWatchdog, why: str = "") -> int:
    """After a failure other ranks may wait in a collective forever: end at once, so that the launcher ends the job, or the
    others' watchdogs do."""
    watchdog.leave(code, why)
    if where.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    shut_down()
    return code
