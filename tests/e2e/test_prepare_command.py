"""`mads prepare` as a user runs it: several workers, Ctrl-C, a killed worker, and the same command again."""

import hashlib
import os
import signal
import subprocess

import pytest
from command_support import MADS, alive, children, environment, expect_bad_input, run, wait_until
from run_support import PREPARE, write_corpus


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "text") / "corpus.jsonl"


def command(corpus, directory, workers):
    sizes = ["data.shard_megabytes=0.02", f"data.paths=[{corpus}]", f"data.dir={directory}"]
    return [str(c) for c in (*MADS, "prepare", "--workers", workers, *PREPARE, *sizes)]


def start(corpus, directory, log, workers=2):
    # As in a terminal: a shell without job control lets what it starts in the background, these tests too, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open(log, "ab") as out:
            return subprocess.Popen(
                command(corpus, directory, workers), stdout=out, stderr=out, env=environment(), start_new_session=True
            )
    finally:
        signal.signal(signal.SIGINT, before)


def hashes(directory):
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_k5_interrupted_in_three_ways_the_same_command_gives_the_same_bytes(corpus, tmp_path):
    whole = run(command(corpus, tmp_path / "whole", 1), tmp_path)
    assert whole.returncode == 0 and "fingerprint" in whole.stdout, whole.stderr
    out, log = tmp_path / "out", tmp_path / "log"
    done = out / "work" / "done"

    process = start(corpus, out, log)
    wait_until(lambda: (done / "plan-00000").exists() or process.poll() is not None, "no plan")
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(timeout=30) == 130, log.read_text()
    assert "interrupted" in log.read_text() and "Traceback" not in log.read_text()
    wait_until(lambda: not any(alive(worker) for worker in workers), "workers are left")

    process = start(corpus, out, log)
    wait_until(lambda: (done / "fit-00001").exists() or process.poll() is not None, "nothing was fitted")
    worker = next(w for w in children(process.pid) if _is_worker(w))
    os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=30) == 2, log.read_text()
    assert "a worker of the preparation was killed by signal 9" in log.read_text() and "Traceback" not in log.read_text()

    process = start(corpus, out, log)
    wait_until(lambda: (done / "shards-00000").exists() or process.poll() is not None, "no shard")
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(alive(worker) for worker in workers), "workers are left")  # else the next command joins them
    assert process.returncode == -signal.SIGKILL, log.read_text()

    again = run(command(corpus, out, 2), tmp_path)
    assert again.returncode == 0 and "going on with the unfinished preparation" in again.stdout, again.stderr
    assert hashes(out) == hashes(tmp_path / "whole")


def _is_worker(pid):
    """Whether a child is one of ours and not the tracker of multiprocessing's resources."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"spawn_main" in file.read()


def test_bad_input_that_a_worker_finds_is_one_message(corpus, tmp_path):
    done = run([*command(corpus, tmp_path / "out", 2), "model.vocab_size=100000"], tmp_path)
    expect_bad_input(done, "model.vocab_size=100000", "more than the training text can fill")
    missing = run([*command(corpus, tmp_path / "none", 2), "--append"], tmp_path)
    expect_bad_input(missing, "no manifest.json", "mads prepare")
