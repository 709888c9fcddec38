import json
import re
from html.parser import HTMLParser

import pytest
from support_runs import LABELS, TASKS, make_run

from mads.cli import main
from mads.console.record import DecisionRecord
from mads.data.schema import DataError
from mads.logging import read_lines
from mads.report import report_command, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """The page as a reader sees it: tags with attributes, sections' text, table rows, polylines. Fails on unbalanced tags."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.stack, self.text = [], [], {}
        self.polylines, self.rows, self.section = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.stack, f"unclosed {self.stack}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in VOID:
            return
        self.stack.append(tag)
        if tag == "section":
            self.section = attrs["id"]
        elif tag == "svg":
            self.chart = attrs.get("aria-label")
        elif tag == "polyline":
            points = [tuple(map(float, p.split(","))) for p in attrs["points"].split()]
            self.polylines.append((self.section, self.chart, attrs["data-series"], points))
        elif tag == "tr":
            self.rows.append((self.section, []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.text[self.section] = self.text.get(self.section, "") + data
        if {"td", "th"} & set(self.stack):
            self.rows[-1][1][-1] += data

    def line(self, chart, series):
        found = [p for _, c, s, p in self.polylines if (c, s) == (chart, series)]
        assert len(found) == 1, (chart, series, [(c, s) for _, c, s, _ in self.polylines])
        return found[0]

    def row(self, section, name):
        return next(cells for where, cells in self.rows if where == section and cells and cells[0] == name)


def number(text):
    return float(text.replace("−", "-"))


def assert_same_shape(pixels, values):
    """Pixels are an affine image of the values in both axes (to the 0.1 px they are written with)."""
    assert len(pixels) == len(values)
    for axis in (0, 1):
        data, drawn = [v[axis] for v in values], [p[axis] for p in pixels]
        low, high = data.index(min(data)), data.index(max(data))
        slope = (drawn[high] - drawn[low]) / (data[high] - data[low])
        assert slope > 0 if axis == 0 else slope < 0  # screens count y downwards
        assert drawn == pytest.approx([drawn[low] + (v - data[low]) * slope for v in data], abs=0.25)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = {"steps": 120, "interval": 20, "eval_interval": 20}
    mads = make_run(folder / "mads-run", "mads", **options, gain=0.1)
    other = make_run(folder / "random-run", "random", seed=1, **options)
    page = Page(write_report(mads, [other]))
    return mads, other, page


def test_training_loss_is_drawn_from_every_log_line_of_both_runs(runs):
    mads, other, page = runs
    for run in (mads, other):
        values = [(v["tokens"], v["loss"]) for v in read_lines(run / "metrics.jsonl") if v["kind"] == "train"]
        assert_same_shape(page.line("Training loss", run.name), values)
        half = [v for v in values if v[0] >= values[-1][0] / 2]
        assert_same_shape(page.line("Training loss, second half", run.name), half)


@pytest.mark.parametrize(
    "group, mean, word, each",
    [("heldout", "heldout_mean", "held-out loss", LABELS["domain"]), ("references", "references_mean", "reference loss", TASKS)],
)
def test_evaluations_are_drawn_from_the_file(runs, group, mean, word, each):
    mads, other, page = runs
    for run in (mads, other):
        lines = [v for v in read_lines(run / "metrics.jsonl") if v["kind"] == "eval"]
        assert_same_shape(page.line(f"Mean {word}", run.name), [(v["tokens"], v[mean]) for v in lines])
        late = [v for v in lines if v["tokens"] >= lines[-1]["tokens"] * 0.2]
        for name in each:
            assert_same_shape(page.line(f"{word}: {name}", run.name), [(v["tokens"], v[group][name]) for v in late])
        assert f"{lines[-1][mean]:.3f}" in page.row("", run.name)
    first, second = ([v for v in read_lines(r / "metrics.jsonl") if v["kind"] == "eval"][-1][mean] for r in (mads, other))
    side = "below" if first < second else "above"
    assert f"is {abs(first - second):.3f} nats {side} that of random-run ({first:.3f} against {second:.3f})" in page.text[""]


def decisions(run):
    return [DecisionRecord.from_json(json.dumps(v)) for v in read_lines(run / "decisions.jsonl")]


def test_theta_and_label_weights_are_drawn_from_the_decisions(runs):
    mads, _, page = runs
    records = decisions(mads)
    for agent, labels in LABELS.items():
        assert_same_shape(page.line("theta by round", agent), [(d.round, d.theta[agent]) for d in records])
        for i, label in enumerate(labels):
            values = [(d.round, d.labels[agent][i].weight) for d in records]
            assert_same_shape(page.line(f"label weights of agent {agent}", label), values)


def test_ranking_and_mix_tables_show_the_records_numbers(runs):
    mads, _, page = runs
    records = decisions(mads)
    for agent in LABELS:
        ranked = sorted(records[-1].labels[agent], key=lambda r: -r.weight)
        for rank, row in enumerate(ranked, start=1):
            cells = page.row("labels", row.label)
            assert cells[1] == str(rank)
            assert number(cells[2]) == pytest.approx(row.weight, abs=5e-4)
            if row.reward_mean is None:
                assert cells[4:6] == ["–", "–"]
            else:  # the column's head says x 10^-3
                assert number(cells[4]) == pytest.approx(row.reward_mean * 1e3, abs=5e-4)
                assert number(cells[5]) == pytest.approx(row.reward_se * 1e3, abs=5e-4)
            assert cells[6:] == [str(row.probes), str(row.probe_tokens), f"{row.pool_share:.1%}", f"{row.chosen_share:.1%}"]
            mix = page.row("mix", row.label)
            assert mix[1] == f"{row.pool_share:.1%}" and len(mix) == 2 + len(records)
            by_round = [r for d in records for r in d.labels[agent] if r.label == row.label]
            assert [c.rstrip(" +−") for c in mix[2:]] == [f"{r.chosen_share:.1%}" for r in by_round]
            for cell, r in zip(mix[2:], by_round):
                factor = r.chosen_share / r.pool_share
                assert cell[-1] == ("+" if factor > 2**0.1 else "−" if factor < 2**-0.1 else "%")


def test_time_and_selection_overhead_add_up(runs):
    mads, other, page = runs
    for run in (mads, other):
        lines = read_lines(run / "metrics.jsonl")
        wall = max(
            next(v["seconds"] for v in lines if v["kind"] == "end"), sum(v["seconds"] for v in lines if v["kind"] == "train")
        )
        spent = {}
        for v in lines:
            if v["kind"] == "phase":
                spent[v["name"]] = spent.get(v["name"], 0) + v["seconds"]
        phases = ["reference", "probes", "groups", "update", "scoring", "exchange", "decision"]
        expected = [f"{spent[p] / wall:.2%}" if p in spent else "–" for p in phases]
        assert page.row("time", run.name)[1:] == [*expected, f"{sum(spent.get(p, 0) for p in phases) / wall:.2%}"]


def test_notes_direction_and_provenance_are_shown(runs):
    mads, _, page = runs
    note = next(n for d in decisions(mads) for n in d.notes)
    assert f"Round 5: {note}" in page.text["decisions"]
    for shown in ("|v|²", "embedding", "41.0%", "finite_difference"):
        assert shown in page.text["direction"]
    assert (mads / "config.yaml").read_text() in page.text["provenance"]
    assert json.loads((mads / "environment.json").read_text())["packages"]["torch"] in page.text["provenance"]


def test_the_page_asks_nobody_for_anything(runs):
    mads, _, page = runs
    assert not {"script", "iframe", "img", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action"} & set(attrs) and not [a for a in attrs if a.startswith("on")]
        assert attrs.get("href", "#").startswith("#") or attrs["href"] == "data:,"
    assert not re.search(r"url\(|@import|https?:", (mads / "report.html").read_text())
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} == set(ids)


def test_hostile_names_stay_text(tmp_path):
    hostile = "<script>alert(1)</script>\"'&"
    run = make_run(tmp_path / "a<b>&'", steps=40, interval=20, eval_interval=10, labels={**LABELS, "domain": [hostile, "news"]})
    with open(run / "config.yaml", "a") as f:
        f.write("note: '</pre><script>alert(2)</script>'\n")
    page = Page(write_report(run))
    assert "script" not in {tag for tag, _ in page.tags} and "b" not in {tag for tag, _ in page.tags}
    assert page.row("labels", hostile) and page.line("label weights of agent domain", hostile)
    assert "</pre><script>alert(2)" in page.text["provenance"] and run.name in page.text[""]


def test_a_run_without_agents_says_so_and_still_shows_its_mix(runs):
    _, other, _ = runs
    page = Page(write_report(other))
    for section in ("theta", "labels"):
        assert "no agents" in page.text[section] and not [1 for where, *_ in page.polylines if where == section]
    assert "no decision recorded a reward direction" in page.text["direction"].lower()
    assert page.row("mix", "news")


def test_losses_are_not_called_rewards(tmp_path):
    run = make_run(tmp_path / "run", steps=40, interval=20, eval_interval=10)
    path = run / "decisions.jsonl"
    path.write_text(path.read_text().replace('"mode": "finite_difference"', '"mode": "reference_loss"'))
    text = Page(write_report(run)).text["labels"]
    assert "Losses of round 1" in text and "higher is worse" in text and "Positive helps" not in text


def test_missing_pieces_give_sentences_not_empty_charts(tmp_path):
    line = {
        "kind": "train",
        "step": 1,
        "tokens": 10,
        "loss": 2.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "seconds": 1.0,
        "tokens_per_second": 10.0,
        "round": 0,
        "memory_mib": 1.0,
        "step_seconds": 1.0,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report(tmp_path))
    for section, words in {
        "heldout": "No held-out loss",
        "references": "No reference loss",
        "theta": "recorded no decision",
        "labels": "recorded no decision",
        "mix": "recorded no decision",
        "time": "No phase timings",
        "provenance": "config.yaml is missing",
    }.items():
        assert words in page.text[section]
    assert "no end line" in page.text[""]
    assert len(page.line("Training loss", tmp_path.name)) == 1
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**line, "loss": None}) + "\n")
    assert "No log line with a finite training loss" in Page(write_report(tmp_path)).text["loss"]


def test_long_curves_are_thinned_to_means_and_say_so(tmp_path):
    run = make_run(tmp_path / "long", "random", steps=2000, interval=500, log_interval=1, eval_interval=500)
    page = Page(write_report(run))
    values = [(v["tokens"], v["loss"]) for v in read_lines(run / "metrics.jsonl") if v["kind"] == "train"]
    k = 3
    means = [tuple(sum(c) / len(b) for c in zip(*b)) for b in (values[i : i + k] for i in range(0, len(values), k))]
    assert_same_shape(page.line("Training loss", "long"), means)
    assert f"means of {k} log lines" in page.text["loss"]


def test_errors_name_the_thing_and_the_remedy(tmp_path, capsys):
    with pytest.raises(DataError, match="not a folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(DataError, match="no metrics.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="log_interval"):
        write_report(tmp_path)
    run = make_run(tmp_path / "run", steps=20, interval=20, eval_interval=10)
    with pytest.raises(DataError, match="twice"):
        write_report(run, [run])
    (run / "decisions.jsonl").write_text('{"round": 1}\n')
    assert main(["report", str(run)]) == 2
    assert "cannot be read as a run folder" in capsys.readouterr().err


def test_command_says_where_the_page_is_and_runs_of_one_name_stay_apart(tmp_path, capsys):
    first, second = (make_run(tmp_path / p / "run", steps=20, interval=20, eval_interval=10) for p in ("a", "b"))
    assert report_command([str(first), "--compare", str(second)]) == 0
    assert str(first / "report.html") in capsys.readouterr().out
    assert {s for _, c, s, _ in Page(first / "report.html").polylines if c == "Training loss"} == {"a/run", "b/run"}


def test_runs_whose_token_counts_differ_are_compared_at_the_last_common_one():
    from mads.report.training import at_equal_tokens

    mine, theirs = [(0.0, 8.0), (90.0, 5.0), (190.0, 4.0)], [(0.0, 8.0), (100.0, 6.0), (200.0, 4.0)]
    place, ours, others = at_equal_tokens(mine, theirs)
    assert (place, ours) == (190.0, 4.0) and others == pytest.approx(6.0 - 2.0 * 90 / 100)
    assert at_equal_tokens([(0.0, 8.0)], theirs) is None and at_equal_tokens([], theirs) is None
