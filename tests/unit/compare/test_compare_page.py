"""What is drawn from results: the numbers of table and page against NumPy and SciPy on the same made results."""

import re

import numpy as np
import pytest
from compare_support import made_result, made_results
from scipy import stats

from mads.compare.charts import mean_curve
from mads.compare.page import render, render_markdown
from mads.compare.summary import Comparison, Roles, read_results
from mads.compare.tables import headline_table, markdown
from mads.data.schema import DataError

ROLES = Roles("random", "mads", "stratified", ("boolq",))


def values(results, strategy):
    """Headline value at the end by seed, read by hand."""
    return np.array([r["points"][-1]["evaluation"]["mean_bits_per_byte"] for r in results if r["strategy"] == strategy])


def check_headline_row():
    results = made_results()
    comparison = Comparison(results, ROLES)
    head, rows = headline_table(comparison, comparison.metrics()[0])
    row = dict(zip(head, next(r for r in rows if r[0] == "mads")))
    ours = values(results, "mads")
    for opponent in ("random", "stratified"):
        difference = ours - values(results, opponent)
        half = stats.t.ppf(0.975, 2) * stats.sem(difference)
        expected = f"{difference.mean():+.4f}".replace("-", "−") + f" ± {half:.4f}"
        assert row[f"minus {opponent}"] == expected
    assert row["evaluation mean, bits per byte"] == f"{ours.mean():.4f}" and row["standard error"] == f"{stats.sem(ours):.4f}"


def test_the_headline_row_holds_means_and_paired_intervals():
    check_headline_row()


def check_compute():
    """With 5% more FLOPs, a place in compute is the place in tokens times 1.05, and equal compute is 1 / 1.05 of the tokens."""
    results = made_results()
    comparison = Comparison(results, ROLES)
    metric = comparison.metrics()[0]
    tokens, compute = comparison.reached("mads", metric), comparison.reached("mads", metric, compute=True)
    assert compute.place.mean == pytest.approx(1.05 * tokens.place.mean)
    expected = []
    for seed in range(3):
        mine = next(r for r in results if (r["strategy"], r["seed"]) == ("mads", seed))["points"]
        y = [p["evaluation"]["mean_bits_per_byte"] for p in mine]
        expected.append(np.interp(1 / 1.05, [p["fraction"] for p in mine], y) - values(results, "random")[seed])
    assert comparison.at_equal_compute("mads", metric).mean == pytest.approx(np.mean(expected))


def test_equal_compute_counts_what_selection_costs():
    check_compute()


def test_the_primary_opponents_p_stands_and_the_others_are_corrected():
    check_corrected()


def check_corrected():
    results = made_results() + [made_result("other", seed, 0.06) for seed in range(3)]
    comparison = Comparison(results, ROLES)
    metric = comparison.metrics()[0]
    table = {o: (e, p) for o, e, p in comparison.treatment_table(metric)}
    ours = values(results, "mads")
    raw = {o: stats.ttest_rel(ours, values(results, o)).pvalue for o in ("random", "stratified", "other")}
    assert list(table)[0] == "stratified" and table["stratified"][1] == pytest.approx(raw["stratified"])
    small, large = sorted((raw["random"], raw["other"]))
    adjusted = [min(1, 2 * small), max(min(1, 2 * small), large)]
    assert sorted(table[o][1] for o in ("random", "other")) == pytest.approx(adjusted)


def test_one_seed_is_said_to_have_no_interval():
    comparison = Comparison(made_results(seeds=(4,)), ROLES)
    page, text = render(comparison, "one"), render_markdown(comparison, "one")
    for said in (page, text):
        assert "One seed" in said and "±" not in re.sub("<style>.*</style>", "", said, flags=re.S)


def test_page_and_table_hold_every_section_and_no_script():
    comparison = Comparison(made_results(), ROLES, {"paper-0": "exit code 1", "paper-2": "exit code 1", "odm-1": "not run"})
    page = render(comparison, "three <strategies>")
    for identity in ("headline", "differences", "reach", "curves", "metrics", "mix", "destroyed", "cost", "provenance"):
        assert f'<section id="{identity}">' in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and "three &lt;strategies&gt;" in page
    assert "No result (exit code 1): paper (seeds 0, 2)." in page and "No result (not run): odm (seed 1)." in page
    assert 'class="band s0"' in page and not re.search(r"\bnan\b", page)
    text = render_markdown(comparison, "three")
    assert text.count("\n| mads |") >= 3 and "paper (seeds 0, 2)" in text


def test_what_is_won_is_drawn_against_what_is_given_up():
    results = made_results()
    page = render(Comparison(results, ROLES), "trade")
    ends = {s: [r["points"][-1] for r in results if r["strategy"] == s] for s in ("random", "stratified", "mads")}
    cost = {s: (np.mean([p["heldout_mean"] for p in own]), values(results, s).mean()) for s, own in ends.items()}
    best = [s for s, c in cost.items() if not any(d != c and d[0] <= c[0] and d[1] <= c[1] for d in cost.values())]
    assert set(re.search('data-frontier="([^"]*)"', page)[1].split()) == set(best)
    for name, (x, y) in cost.items():
        assert re.search(rf"<title>{name}: {x:.4f}, {y:.4f}</title>", page)
    assert page.count("data-frontier") == 1
    assert "data-frontier" not in render(Comparison(made_results(fractions=(1.0,), evaluated=False)[:1], ROLES), "alone")


def test_without_evaluation_and_branches_the_references_are_the_headline():
    comparison = Comparison(made_results(fractions=(1.0,), evaluated=False), ROLES)
    assert comparison.metrics()[0].name == "reference mean"
    page = render(comparison, "plain")
    assert "Only ends at all tokens" in page and "not reached" not in page


def test_trunks_that_were_evaluated_once_have_no_learning_curves():
    results = made_results()

    def of_curves():
        return re.search('<section id="curves">(.*?)</section>', render(Comparison(results, ROLES), "ends"), re.S)[1]

    assert of_curves().count("<svg") >= 4
    for result in results:
        curve = result["curve"]
        result["curve"] = {
            key: {name: values[-1:] for name, values in found.items()} if isinstance(found, dict) else found[-1:]
            for key, found in curve.items()
        }
    assert "<svg" not in of_curves() and "evaluated once only" in of_curves()


def test_a_strategy_that_lacks_a_seed_is_paired_over_the_others():
    results = [r for r in made_results() if (r["strategy"], r["seed"]) != ("mads", 1)]
    comparison = Comparison(results, ROLES)
    assert comparison.against("mads", "random", comparison.metrics()[0]).n == 2
    assert "<svg" in render(comparison, "less")


def test_without_the_control_the_page_says_so():
    comparison = Comparison([r for r in made_results() if r["strategy"] != "random"], ROLES)
    assert "The control random has no result" in render(comparison, "uncontrolled")


def test_a_band_is_one_standard_error_around_the_mean():
    curves = [[(0.0, 5.0), (10.0, 3.0)], [(0.0, 7.0), (12.0, 1.0)]]
    series = mean_curve("a", curves, 0)
    assert [x for x, _ in series.points] == [0.0, 10.0]
    second = [3.0, 7.0 - 6.0 * 10 / 12]
    assert series.points[-1][1] == pytest.approx(np.mean(second))
    assert series.band[-1][2] - series.band[-1][1] == pytest.approx(2 * stats.sem(second))
    assert mean_curve("b", curves[:1], 0).band == []


def test_a_bar_in_a_cell_does_not_break_a_markdown_table():
    assert markdown((["a", "b"], [["x|y", "1"]])) == "| a | b |\n|---|---|\n| x\\|y | 1 |"


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "mads-0.json").write_text('{"strategy": "mads"}')
    with pytest.raises(DataError, match="mads-0.json is not the result"):
        read_results(tmp_path)
