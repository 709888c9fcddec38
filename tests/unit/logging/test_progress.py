import io

import pytest

from mads.console.record import DecisionRecord, LabelRecord
from mads.logging import Progress
from mads.logging.progress import count, duration

LINE = {
    "kind": "train",
    "step": 20,
    "tokens": 81920,
    "loss": 5.25,
    "lr": 1e-3,
    "grad_norm": 1.5,
    "seconds": 4.0,
    "tokens_per_second": 20480.0,
}


def shown(call, **options):
    stream = io.StringIO()
    call(Progress(100, stream=stream, **options))
    return stream.getvalue()


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (999, "999"), (1000, "1.00k"), (12345, "12.3k"), (999_999, "1.00M"), (123456, "123k"), (31.5e9, "31.5B")],
)
def test_count_has_three_digits(value, text):
    assert count(value) == text


@pytest.mark.parametrize("seconds, text", [(59, "59s"), (65, "1m05s"), (3700, "1h01m"), (59.6, "1m00s")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_train_line_shows_its_numbers_and_the_time_left():
    text = shown(lambda p: p.metrics(LINE), first_step=10)
    for part in ("20/100", "81.9k tokens", "loss 5.2500", "lr 1.00e-03", "grad 1.500", "20.5k tokens/s", "ETA 32s"):
        assert part in text  # 4 s for the 10 steps seen, 80 to go
    assert "loss not finite" in shown(lambda p: p.metrics({**LINE, "loss": None}))


def test_eval_and_end_lines():
    line = {"kind": "eval", "step": 5, "heldout": {"news": 4.5}, "references": {}, "heldout_mean": 4.5, "references_mean": None}
    text = shown(lambda p: p.metrics(line))
    assert "held-out 4.5000 (news 4.500)" in text and "references" not in text
    assert "10 steps, 1.00k tokens in 1m01s" in shown(
        lambda p: p.metrics({"kind": "end", "steps": 10, "tokens": 1000, "seconds": 61})
    )


def test_a_decision_shows_theta_bars_and_ranked_labels():
    rows = [LabelRecord(f"label{i:02d}", weight=i / 10, chosen_share=(19 - i) / 100) for i in range(20)]
    record = DecisionRecord(
        3,
        150,
        10_000,
        "mads",
        {"domain": 0.75, "quality": 0.25},
        {},
        {"domain": rows},
        10,
        900,
        1000,
        2,
        1,
        notes=["ran short"],
        seconds={"scoring": 2.0},
    )
    text = shown(lambda p: p.decision(record))
    bars = {line.split()[1]: line.count("#") for line in text.splitlines() if "theta" in line}
    assert bars == {"domain": 15, "quality": 5}
    assert text.index("label19 1.9") < text.index("12 more") < text.index("label00 0")
    assert "note: ran short" in text
    record.theta = {}
    by_share = shown(lambda p: p.decision(record))
    assert "theta" not in by_share and by_share.index("label00") < by_share.index("label19")


def test_disabled_is_silent():
    assert shown(lambda p: (p.metrics(LINE), p.message("x")), enabled=False) == ""


def test_text_of_a_corpus_does_not_steer_the_terminal():
    stream = io.StringIO()
    Progress(10, stream=stream).message("a\x1b[2J\x07\u202e\nb \u00e9\u6f22")
    assert stream.getvalue() == "a\\x1b[2J\\x07\\u202e\nb \u00e9\u6f22\n"
