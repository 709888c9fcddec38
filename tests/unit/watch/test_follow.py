"""Following files that grow, are cut back, or are not what they should be; and what a frame makes of numbers."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from mads.data.schema import DataError
from mads.watch.follow import Follower, Tail, number
from mads.watch.frame import _ends, bar, frame, signed_bar, spark

TRAIN = {"kind": "train", "step": 4, "tokens": 80, "loss": 2.5, "seconds": 3.0, "selection_seconds": 1.5}
DECISION = {
    **{"round": 0, "step": 0, "consumed_tokens": 0, "selection": "mads", "theta": {"domain": 1.0}, "agent_rewards": {}},
    **{"labels": {"domain": [{"label": "news", "weight": 0.25}]}, "chosen": 3, "chosen_tokens": 9, "budget_tokens": 9},
    **{"reused": 0, "hash": 1},
}


def write(path, *lines, mode="w"):
    with open(path, mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def text(run, now=0.0, **options):
    console = Console(width=80, record=True, file=open(os.devnull, "w"), highlight=False, markup=False, emoji=False)
    console.print(frame(run, now, **options))
    return console.export_text()


def test_new_lines_once_and_a_half_line_when_it_is_whole(tmp_path):
    tail = Tail(tmp_path / "x")
    assert tail.read() == (False, []) and tail.written is None
    write(tail.path, {"a": 1})
    assert tail.read() == (True, [{"a": 1}])
    with open(tail.path, "a") as file:
        file.write('{"a"')
        file.flush()
        assert tail.read() == (False, [])
        file.write(": 2}\n")
    assert tail.read() == (False, [{"a": 2}]) and tail.read() == (False, [])
    assert tail.written == os.stat(tail.path).st_mtime


def check_replaced(shorter):
    with tempfile.TemporaryDirectory() as folder:
        tail = Tail(Path(folder) / "x")
        write(tail.path, {"a": 1}, {"a": 2})
        tail.read()
        lines = [{"a": 1}] if shorter else [{"a": 1}, {"a": 3}, {"a": 4}]
        write(Path(folder) / "new", *lines)
        os.replace(Path(folder) / "new", tail.path)
        assert tail.read() == (True, lines)
        tail.path.unlink()
        assert tail.read() == (True, []) and tail.read() == (False, [])


@pytest.mark.parametrize("shorter", [True, False])
def test_a_file_that_was_replaced_is_read_anew(shorter):
    check_replaced(shorter)


@pytest.mark.parametrize("line", ["{", "3", "null", '{"a": }', "\x00", "[" * 100_000])
def test_damage_is_told_with_its_line(tmp_path, line):
    write(tmp_path / "metrics.jsonl", TRAIN)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match="metrics.jsonl, line 2: "):
        Follower(tmp_path).read()


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        Follower(tmp_path / "none")
    with pytest.raises(DataError, match="holds no metrics.jsonl"):
        Follower(tmp_path)


def test_a_run_that_has_written_nothing_yet_is_shown(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {steps: 10}\nselection: {name: mads}\n")
    run = Follower(tmp_path)
    run.read()
    assert "no line yet, selection mads" in text(run) and "step 0/10" in text(run)
    write(tmp_path / "metrics.jsonl", TRAIN)
    run.read()
    assert "step 4/10" in text(run) and "50.0% of the time" in text(run)


@pytest.mark.parametrize("age, words", [(4.0, "last line 4s ago,"), (300.0, "5m00s ago: stopped, or in a long phase")])
def test_silence_is_said(tmp_path, age, words):
    write(tmp_path / "metrics.jsonl", TRAIN)
    run = Follower(tmp_path)
    run.read()
    assert words in text(run, run.written + age)


def test_the_pace_is_that_of_the_recent_lines(tmp_path):
    write(tmp_path / "metrics.jsonl", *({**TRAIN, "step": 2 * i, "seconds": 100.0 if i < 9 else 3.0} for i in range(1, 31)))
    run = Follower(tmp_path)
    run.read()
    assert run.metrics.eta_seconds(100) == pytest.approx(40 * 1.5)
    assert run.metrics.eta_seconds(None) is None
    write(tmp_path / "metrics.jsonl", {"kind": "end", "steps": 60, "tokens": 1, "seconds": 3.0}, mode="a")
    run.read()
    assert run.metrics.eta_seconds(100) is None and "finished" in text(run)


ODD = [None, True, "9", [1], {"a": 1}, -1, 1e308, 10**400, "\x1b[2J", {}]


@pytest.mark.parametrize("odd", ODD, ids=lambda v: type(v).__name__)
def test_values_of_any_type_are_shown_or_told(tmp_path, odd):
    for key in TRAIN:
        for kind in ("train", "phase", "eval", "checkpoint", "end"):
            line = {"name": "x", "steps": odd, "heldout_mean": odd, "memory_mib": odd, **TRAIN, "kind": kind, key: odd}
            write(tmp_path / "metrics.jsonl", line, line)
            run = Follower(tmp_path)
            run.read()
            assert "\x1b" not in text(run)
    for key in DECISION:
        for decision in (
            {**DECISION, key: odd},
            {**DECISION, "theta": {"domain": odd}, "labels": {"domain": [{"label": odd, "weight": odd, "chosen_share": odd}]}},
        ):
            write(tmp_path / "decisions.jsonl", decision)
            run = Follower(tmp_path)
            try:
                run.read()
            except DataError as error:
                assert "is no decision" in str(error)
            else:
                assert "\x1b" not in text(run)


def test_text_of_a_corpus_is_shown_and_not_obeyed(tmp_path):
    names = ["[red]x[/red]", ":smile:", "a\x1b[31mb", "two\nlines", "漢字" * 30]
    labels = [{"label": name, "weight": 0.5 - i / 10} for i, name in enumerate(names)]
    write(tmp_path / "decisions.jsonl", {**DECISION, "labels": {"domain": labels}, "notes": ["[bold]note[/bold]"]})
    run = Follower(tmp_path)
    run.read()
    shown = text(run)
    for words in ("[red]x[/red]", ":smile:", "a\\x1b[31mb", "two\\nlines", "[bold]note[/bold]"):
        assert words in shown
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80


def test_bars_by_hand():
    assert [bar(s, 10, False) for s in (0.0, 0.01, 0.5, 1.0, 7.0, -1.0, None)] == ["", "#", "#####", "#" * 10, "#" * 10, "", ""]
    assert signed_bar(-0.5, 1.0, 4, False) == "  ##|    " and signed_bar(1.0, 1.0, 4, False) == "    |####"
    assert signed_bar(None, 1.0, 2, False) == signed_bar(0.0, 0.0, 2, False) == "  |  "
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8, True) == "▁▂▃▄▅▆▇█"
    assert spark([0, 0, 7, 7], 2, True) == "▁█" and spark([], 9, True) == "" and spark([2.0, 2.0], 9, False) == "=="
    assert spark([0.0, 1.0], 9, True, 0, 1) == "▁█" and spark([0.5], 9, True, 0, 1) == "▅"


def test_long_lists_keep_both_ends():
    assert _ends([1, 2, 3], 3) == [1, 2, 3]
    assert _ends(list("abcdefg"), 4) == ["a", "b", 4, "g"] and _ends(list("abc"), 2) == ["a", 2]


def test_numbers_are_finite_numbers():
    assert [number(v) for v in (1, 2.5, True, "1", None, float("nan"), float("inf"), 10**400)] == [1.0, 2.5] + [None] * 6
