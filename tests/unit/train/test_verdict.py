"""Who is to blame when a run stands still, from reports written by hand; the clock that suspension does not advance; links."""

import json
import socket
import threading
import time

import pytest

from mads.launch.identity import Identity, end_process
from mads.train import links, verdict
from mads.train.links import Link
from mads.train.monitor import Monitor
from mads.train.pulse import Pulse
from mads.train.verdict import Report, overview, sentence, standing
from mads.train.watchdog import Clock

LIMIT = 10.0


def report(step=7, count=70, idle=0.0, waits=True, heard=100.0, phase="train", place="all_reduce"):
    return Report(step, phase, count, True, idle, waits, place, heard)


def check_one_rank_that_moves_is_enough():
    """A rank that waits for a slow one makes no progress for longer than the limit."""
    reports = {0: report(idle=50.0), 1: report(idle=0.4, waits=False)}
    assert verdict.hung_for(reports, 100.0) == pytest.approx(0.4)
    assert verdict.hung_for(reports, 109.0) == pytest.approx(9.4)
    assert verdict.hung_for({0: report(idle=50.0), 1: report(idle=12.0)}, 101.0) == pytest.approx(13.0)


# (reports at 100 s, kind, ranks)
CASES = {
    "in python": ({0: report(idle=11), 1: report(idle=11, waits=False, place="loader"), 2: report(idle=11)}, "busy", [1]),
    # Behind is whoever waits for the stage before it, but it waits.
    "the one behind waits": ({0: report(count=90, idle=11, waits=False), 1: report(count=80, idle=11)}, "busy", [0]),
    "silent, others wait": ({0: report(idle=11), 1: report(heard=89.0), 2: report(idle=11)}, "silent", [1]),
    "silent before busy": ({0: report(idle=11, waits=False), 1: report(heard=88.0)}, "silent", [1]),
    "a whole node": ({0: report(idle=11), 1: report(heard=88.0), 2: report(heard=88.5)}, "silent", [1, 2]),
    "all wait, one behind": ({0: report(idle=11), 1: report(count=69, idle=11), 2: report(idle=11)}, "waiting", [1]),
    "steps before counts": ({0: report(step=6, count=99, idle=11), 1: report(idle=11)}, "waiting", [0]),
    "of two in python the one behind": (
        {0: report(idle=11, waits=False), 1: report(count=60, idle=11, waits=False), 2: report(count=5, idle=11)},
        "busy",
        [1],
    ),
    "no difference": ({0: report(idle=11), 1: report(idle=11)}, "waiting", [0, 1]),
}


def check_culprits(name):
    reports, kind, ranks = CASES[name]
    assert verdict.culprits(reports, 100.0, LIMIT) == (kind, ranks)


def check_suspension_is_no_time():
    """Steps of the real clock, of which one is long: the process was stopped."""
    real = iter([0.0, 1.0, 2.0, 1000.0, 1001.0])
    clock = Clock(3.0, lambda: next(real))
    assert [clock() for _ in range(4)] == [1.0, 2.0, 5.0, 6.0]


def test_a_run_hangs_only_when_no_rank_moves():
    check_one_rank_that_moves_is_enough()


@pytest.mark.parametrize("name", CASES)
def test_the_rank_that_all_others_wait_for_is_to_blame(name):
    check_culprits(name)


def test_a_suspended_process_does_not_take_others_for_late():
    check_suspension_is_no_time()


@pytest.mark.parametrize("kind", ["dead", "silent", "busy", "waiting"])
def test_a_sentence_names_rank_step_phase_and_time(kind):
    text = sentence(kind, {3: report(step=41, idle=2, heard=96.0, phase="rewards", place="x.py:1 f")}, 100.0, 43)
    assert text.startswith("rank 3 ") and "after step 41, in phase rewards" in text
    assert ("step 43" in text and "4.0 s ago" in text) if kind in ("dead", "silent") else ("6.0 s" in text and "x.py:1 f" in text)


def test_many_ranks_are_counted_not_listed():
    many = {rank: report(idle=11) for rank in range(40)}
    assert sentence("waiting", many, 100.0, 7).endswith("; and 32 ranks more")
    (line,) = overview(many)
    assert "0, 1, 2" in line and "... (40)" in line and "all_reduce" in line


def test_where_a_thread_stands_is_seen_while_it_is_blocked():
    event = threading.Event()
    thread = threading.Thread(target=event.wait, daemon=True)
    thread.start()
    time.sleep(0.1)
    waits, place = standing(thread.ident)
    event.set()
    assert not waits and "threading.py" in place and place.endswith("wait")


def test_phases_nest_and_an_exception_leaves_the_one_it_came_from():
    pulse = Pulse()
    with pulse.during("selection"), pulse.during("rewards"):
        assert pulse.phase == "rewards" and pulse.count == 2
    assert (pulse.phase, pulse.count, pulse.warm) == ("start", 4, False)
    pulse.stepped(3)
    assert (pulse.phase, pulse.step, pulse.warm) == ("loop", 3, True)
    with pytest.raises(KeyError), pulse.during("train"):
        raise KeyError
    assert pulse.phase == "train"


# ---------------------------------------------------------------- links, the file, processes


def connected():
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        return Link(server.accept()[0]), Link(theirs)


def arrived(link, enough):
    """What a link receives until it is enough."""
    found, deadline = [], time.monotonic() + 10
    while not enough(found) and time.monotonic() < deadline:
        found += link.receive()
        time.sleep(0.001)
    return found


def test_a_link_carries_whole_messages_and_tells_the_end_after_them():
    ours, theirs = connected()
    assert ours.receive() == [] and not ours.closed
    theirs.socket.send(b'{"a": 1}\n{"b"')
    assert arrived(ours, len) == [{"a": 1}]
    theirs.socket.send(b": 2}\n")
    theirs.send({"left": 0})
    theirs.socket.close()
    assert arrived(ours, lambda found: ours.closed) == [{"b": 2}, {"left": 0}] and ours.closed
    ours.send({"too": "late"})  # no error


def test_a_peer_that_does_not_read_costs_neither_time_nor_memory():
    ours, theirs = connected()
    for _ in range(100_000):  # 11 MB
        ours.send({"text": "x" * 100})
    assert len(ours._unsent) < links.MOST_BYTES + 200
    received = arrived(theirs, len)
    assert all(message == {"text": "x" * 100} for message in received) and len(received) > 100


def test_strangers_are_not_taken_for_ranks(monkeypatch):
    monkeypatch.setattr(links, "HELLO_S", 0.2)
    listener = links._listen("127.0.0.1")
    address = listener.getsockname()
    strangers = [socket.create_connection(address) for _ in range(3)]  # one says nothing at all
    strangers[1].sendall(b"wrong 1\n")
    strangers[2].sendall(b"\xff" * 200)
    join = threading.Thread(target=lambda: strangers.append(links._join(*address, "secret 1\n")))
    join.start()
    found = links._accept(listener, "secret", 2)
    join.join()
    assert list(found) == [1]
    strangers[-1].send({"hello": 1})
    time.sleep(0.1)
    assert found[1].receive() == [{"hello": 1}]


def test_ranks_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(links, "MEET_S", 0.2)
    with pytest.raises(OSError, match=r"ranks \[1, 2\] have not connected within 0.2 s"):
        links._accept(links._listen("127.0.0.1"), "secret", 3)


def test_the_heartbeat_file_shows_all_ranks_and_is_never_half(tmp_path):
    monitor = Monitor(tmp_path / "run", 9.0)
    monitor.show({0: report()}, {}, 100.0)
    time.sleep(0.1)
    assert not (tmp_path / "run").exists()  # the run makes its folder
    (tmp_path / "run").mkdir()
    monitor.show({0: report(), 1: report(step=6, heard=99.0, idle=1.0)}, {1: {"code": 1}}, 103.0)
    monitor.show({0: report(step=8)}, {}, 103.5)  # too soon
    file = tmp_path / "run" / "heartbeat.json"
    deadline = time.monotonic() + 10
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    shown = json.loads(file.read_text())
    assert shown["hang_timeout_s"] == 9.0 and shown["ended"] is None and abs(shown["time"] - time.time()) < 60
    assert [(r["rank"], r["step"], r["phase"]) for r in shown["ranks"]] == [(0, 7, "train"), (1, 6, "train")]
    assert shown["ranks"][1]["seconds_silent"] == 4.0 and shown["ranks"][1]["seconds_without_progress"] == 5.0
    assert shown["ranks"][1]["left_with"] == 1 and "left_with" not in shown["ranks"][0]
    monitor.show({0: report(step=9)}, {}, 104.0, "exit code 0")
    shown = json.loads(file.read_text())
    assert shown["ended"] == "exit code 0" and shown["ranks"][0]["step"] == 9
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["heartbeat.json"]


def test_only_the_very_process_is_ended(monkeypatch):
    import subprocess

    monkeypatch.delenv("MADS_PARENT", raising=False)
    child = subprocess.Popen(["sleep", "60"])
    mine = Identity.own()
    right = Identity(mine.space, child.pid, (born := _born(child.pid)))
    for wrong in (right._replace(space=""), right._replace(space=mine.space + "x"), right._replace(born=f"{int(born) + 1}")):
        assert not end_process(wrong) and child.poll() is None
    assert end_process(right) and child.wait(10) == -9
    assert not end_process(right)
    monkeypatch.setenv("MADS_PARENT", "1")  # `mads train` ends its workers
    assert Identity.own().space == ""


def _born(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[19]
