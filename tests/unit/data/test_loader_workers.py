"""D4 with worker processes: the same batches bit for bit, in every round; their errors and their ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from harness import pool_pids
from test_loader import GLOBAL, SEQ, check_same, own_pool, rest_of, steps

from mads.data.loader import Loader
from mads.data.schema import DataError

ENDLESS = """
import sys
import numpy as np
from mads.data.loader import Loader
from mads.data.pool import Pool

if __name__ == "__main__":
    pool = Pool.open(sys.argv[1])
    loader = Loader(pool, 32, 8, 2, 0, 1, prefetch=2, workers=2)
    loader.begin_round(0, pool.ids[:])
    loader.next()
    print(*(p.pid for p in __import__("multiprocessing").active_children()), flush=True)
    if sys.stdin.readline():
        loader.begin_round(1, pool.ids[:])  # asks every worker anew
        print(loader.next().tokens, flush=True)
        loader.close()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return own_pool(tmp_path_factory.mktemp("pool"))


def worker_pids():
    """The loaders' processes; the harness's come from a fork server as well."""
    others = {pid for world in range(1, 9) for pid in pool_pids(world)}
    return [p.pid for p in multiprocessing.active_children() if "ForkServer" in type(p).__name__ and p.pid not in others]


def check_workers(pool, ids, workers=2, prefetch=3):
    """Two rounds, one of them left in the middle, then a resumed one: all by the same processes."""
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch, workers) as loader:
        loader.begin_round(0, ids)
        first = [loader.next() for _ in range(2)]
        pids = sorted(worker_pids())
        loader.begin_round(1, ids[::-1])
        second = rest_of(loader)
        loader.begin_round(3, ids, 2)
        third = rest_of(loader)
        assert len(pids) == workers and sorted(worker_pids()) == pids
    assert not worker_pids()
    whole = steps(pool, ids)
    check_same(first, whole[:2])
    check_same(second, steps(pool, ids[::-1]))
    check_same(third, whole[2:])


def check_alone(check):
    """Run a check on a pool of its own (for tests/mutants)."""
    with tempfile.TemporaryDirectory() as folder:
        globals()[check](*own_pool(folder))


@pytest.mark.parametrize("workers, prefetch", [(1, 1), (2, 3), (2, 50)])
def test_d4_any_number_of_workers_gives_the_same_batches_in_every_round(data, workers, prefetch):
    check_workers(*data, workers, prefetch)


def check_worker_order(pool, ids):
    """One worker is slower than the other."""
    whole = steps(pool, ids)
    with Loader(pool, SEQ, GLOBAL, 1, 1, 2, prefetch=4, workers=2) as loader:
        loader.begin_round(3, ids)
        got = rest_of(loader)
    check_same(got, steps(pool, ids, micro=1, rank=1, size=2))
    assert [s.sample_ids.tolist() for s in got] == [s.sample_ids.tolist() for s in whole]


def test_d2_workers_of_a_rank_build_that_ranks_rows(data):
    check_worker_order(*data)


def test_an_error_in_a_worker_surfaces_as_what_it_was_and_can_be_retried(tmp_path):
    pool, ids = own_pool(tmp_path)
    expected = steps(pool, ids)
    hidden = tmp_path / "train" / "shard-00000.bin"
    hidden.rename(tmp_path / "hidden")
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch=2, workers=2) as loader:
        loader.begin_round(3, ids)
        with pytest.raises(DataError, match="shard-00000.bin .No such file"):
            loader.next()  # a worker cannot open its files
        (tmp_path / "hidden").rename(hidden)
        check_same([loader.next()], expected[:1])
        assert len(worker_pids()) == 2  # those that could not open their files have ended
        os.kill(worker_pids()[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            for _ in range(3):  # what was packed already is still handed out
                loader.next()
        at = loader.position
        check_same(rest_of(loader), expected[at:])
    assert not worker_pids()


def endless(data, folder):
    """A process with two workers, who waits for its input."""
    (folder / "endless.py").write_text(ENDLESS)
    command = [sys.executable, str(folder / "endless.py"), str(Path(data[0].readers[0].bin_path).parents[1])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_workers_end_when_the_training_process_is_killed(data, tmp_path):
    with endless(data, tmp_path) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
        process.kill()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def processes_below(pid):
    """Process ids of all descendants."""
    children = [int(p) for thread in Path(f"/proc/{pid}/task").glob("*/children") for p in thread.read_text().split()]
    return children + [below for child in children for below in processes_below(child)]


def test_signals_of_a_cluster_to_every_process_leave_the_workers_at_work(data, tmp_path):
    """Slurm sends the warning before a time limit to the loader's processes too: fork server, resource tracker, workers."""
    process = endless(data, tmp_path)
    try:
        workers = {int(pid) for pid in process.stdout.readline().split()}
        below = processes_below(process.pid)
        assert workers < set(below) and len(below) == 4
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            for pid in below:
                os.kill(pid, number)
        time.sleep(0.5)
        assert sorted(processes_below(process.pid)) == sorted(below)
        said, _ = process.communicate("go on\n", timeout=60)
        assert int(said) > 0 and process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_the_training_process_itself_can_end_a_worker(data):
    pool, ids = data
    loader = Loader(pool, SEQ, GLOBAL, 2, 0, 1, 2, 1)
    loader.begin_round(0, ids)
    loader.next()
    (worker,) = [p for p in multiprocessing.active_children() if p.pid in worker_pids()]
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()  # not its exit code: the loader's thread asks for it too, and the second one to ask reads 255
    loader.close()
