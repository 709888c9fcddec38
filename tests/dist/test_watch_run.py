"""`mads watch` on the folder of a real run: its numbers against the files, read by hand; cut back and grown; in a terminal."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time

import pytest
from harness import run_ranks

from mads.cli import main
from mads.watch.follow import Follower


def train(prepared, folder):
    from run_support import run_config, trainer

    trainer(run_config(prepared, folder, "selection.interval=4", "checkpoint.interval=6")).run()


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "watched"
    run_ranks(1, train, prepared, str(folder))
    return folder


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def number_after(words, shown):
    return re.search(re.escape(words) + r"\s+([-+0-9.e,]+)", shown).group(1)


def test_the_numbers_are_those_of_the_files(finished, capsys):
    assert main(["watch", str(finished), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "watched\nfinished, selection mads\n" in shown and "step 12/12" in shown
    metrics, decisions = lines(finished, "metrics.jsonl"), lines(finished, "decisions.jsonl")
    trained = [m for m in metrics if m["kind"] == "train"]
    last, evaluated = trained[-1], [m for m in metrics if m["kind"] == "eval"][-1]
    assert number_after("loss", shown) == f"{last['loss']:.4f}"
    assert number_after("mean of the last 10:", shown) == f"{sum(m['loss'] for m in trained[-10:]) / 10:.4f}"
    assert number_after("held-out", shown) == f"{evaluated['heldout_mean']:.4f}"
    assert number_after("references", shown) == f"{evaluated['references_mean']:.4f}"
    assert number_after("gradient norm", shown) == f"{last['grad_norm']:.3f}"
    assert number_after("checkpoint   step", shown) == "12"
    seconds = {}
    for m in metrics:
        if m["kind"] == "phase":
            seconds[m["name"]] = seconds.get(m["name"], 0) + m["seconds"]
    wall = max(sum(m["seconds"] for m in trained), sum(seconds.values()))
    for name in sorted(seconds, key=seconds.get)[-5:]:
        assert re.search(rf"^{name} +{100 * seconds[name] / wall:.1f}%", shown, re.M), name
    assert f"rewards and all, {100 * sum(m['selection_seconds'] for m in trained) / wall:.1f}% of" in shown
    decision = decisions[-1]
    assert len(decisions) == 3 and f"round 2 at step 8: {decision['chosen']} samples" in shown
    for agent, theta in decision["theta"].items():
        assert number_after(f"theta {agent}", shown) == f"{theta:.3f}"
    blocks = re.split(r"^labels of (\w+) .*$", shown, flags=re.M)[1:]
    assert blocks[::2] == list(decision["labels"])
    for (agent, rows), block in zip(decision["labels"].items(), blocks[1::2]):
        ordered = sorted(rows, key=lambda r: (-r["weight"], r["label"]))
        expected = ordered if len(rows) <= 12 else [*ordered[:6], None, *ordered[-5:]]
        found = [line for line in block.splitlines() if line.startswith("  ")]
        assert len(found) == len(expected), agent
        for row, line in zip(expected, found):
            if row is None:
                assert f"... {len(rows) - 11} more" in line
                continue
            numbers = re.findall(r"[-+]?\d+\.\d+%?", line.split(row["label"][:20], 1)[1])
            shares = [f"{100 * row[key]:.1f}%" for key in ("chosen_share", "pool_share")]
            assert numbers == [f"{row['weight']:+.3f}", *shares], line


def state(run):
    run.read()
    return run.metrics, run.theta, run.decision


def test_a_run_followed_line_by_line_ends_where_a_finished_one_is(finished, tmp_path):
    """With half lines, and a cut back to the checkpoint of step 6 in between, as a resumed run makes it."""
    from mads.logging.metrics import truncate_after

    folder = tmp_path / "watched"
    folder.mkdir()
    shutil.copy(finished / "config.yaml", folder)
    run = Follower(folder)
    for name in ("decisions.jsonl", "metrics.jsonl"):
        for line in (finished / name).read_text().splitlines(keepends=True):
            for piece in (line[:7], line[7:]):
                with open(folder / name, "a") as file:
                    file.write(piece)
                run.read()
    whole = state(Follower(finished))
    assert state(run) == whole
    for name in ("decisions.jsonl", "metrics.jsonl"):
        assert truncate_after(folder / name, 6) > 0
    run.read()
    assert run.metrics.step == 6 and run.metrics.end is None and {len(t) for t in run.theta.values()} == {2}
    for name in ("decisions.jsonl", "metrics.jsonl"):
        kept = set((folder / name).read_text().splitlines())
        with open(folder / name, "a") as file:
            file.writelines(line + "\n" for line in (finished / name).read_text().splitlines() if line not in kept)
    assert state(run) == whole


def test_in_a_terminal_it_follows_the_run_and_leaves_the_screen_as_it_was(finished, tmp_path):
    folder = tmp_path / "watched"
    folder.mkdir()
    shutil.copy(finished / "config.yaml", folder)
    shutil.copy(finished / "decisions.jsonl", folder)
    raw = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    half = next(i for i, line in enumerate(raw) if b'"train", "step": 6' in line) + 1
    (folder / "metrics.jsonl").write_bytes(b"".join(raw[:half]))
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "mads.cli", "watch", str(folder), "--interval", "0.1"]
    sizes = {"TERM": "xterm", "LINES": "30", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | sizes)
    os.close(slave)
    shown, limit = b"", time.monotonic() + 90
    try:
        while b"step 12/12" not in shown or process.poll() is None:
            assert time.monotonic() < limit, shown[-2000:]
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if b"step 6/12" in shown and half:
                with open(folder / "metrics.jsonl", "ab") as file:
                    file.write(b"".join(raw[half:]))
                half = 0
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(master)
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1
    followed, left = shown.split(b"\x1b[?1049l")
    assert b"step 6/12" in followed and b"ETA" in followed and b"finished" not in followed.split(b"step 6/12")[0]
    assert b"step 12/12" in left and b"finished" in left
