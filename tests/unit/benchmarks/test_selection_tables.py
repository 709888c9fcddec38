"""The tables of benchmarks/selection.md against the committed results, and what computes them against scipy and by hand."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import selection_tables  # noqa: E402

PAGE = (ROOT / "benchmarks/selection.md").read_text()
RESULTS = ROOT / "benchmarks/selection"
SEEDS = re.compile(r"seeds [0-9, ]+: nine tasks|nine tasks, seeds [0-9]+(, [0-9]+)*( and [0-9]+)?")
# folder, treatment, who else is in the table
TABLES = [
    ("fresh_13_15", "mads", ["hand", "stratified", "dsir", "odm", "top_quality", "mates", "likeness"]),
    ("fresh_13_15", "floors", ["mads", "hand", "stratified"]),
    ("six_million_fresh", "mads", ["hand", "stratified"]),
]


def cells(folder, strategy, seeds):
    paths = [RESULTS / folder / "results" / f"{strategy}-{s}.json" for s in seeds]
    return [json.loads(p.read_text())["points"][-1] for p in paths]


@pytest.mark.parametrize("folder, treatment, others", TABLES, ids=lambda x: x if isinstance(x, str) else "")
def test_the_page_shows_what_the_results_say(folder, treatment, others):
    comparison = selection_tables.read(RESULTS / folder / "results", treatment, "moore_lewis", others)
    lines = selection_tables.headline(comparison).splitlines()
    assert len(lines) == 2 + len(comparison.strategies) >= 7
    missing = [line for line in lines if line not in PAGE.splitlines()]
    assert not missing


def test_differences_are_paired_by_seed_and_the_others_corrected():
    comparison = selection_tables.read(RESULTS / "fresh_13_15/results", "mads", "moore_lewis", ["hand", "stratified"])
    table = {row.split("|")[1].strip(" `"): row.split("|") for row in selection_tables.headline(comparison).splitlines()[2:]}
    value = {s: [p["evaluation"]["mean_bits_per_byte"] for p in cells("fresh_13_15", s, (13, 14, 15))] for s in table}
    raw = {s: ttest_rel(value["mads"], value[s]).pvalue for s in table if s != "mads"}
    others = sorted((p, s) for s, p in raw.items() if s != "moore_lewis")
    holm = np.maximum.accumulate([p * (len(others) - i) for i, (p, _) in enumerate(others)])
    expected = {"moore_lewis": raw["moore_lewis"], **{s: p for p, (_, s) in zip(holm, others, strict=True)}}
    for strategy, p in expected.items():
        assert table[strategy][5].strip() == f"{p:.3f}"
        difference = np.mean(value["mads"]) - np.mean(value[strategy])
        assert table[strategy][4].split()[0] == f"{difference:+.4f}"


def test_every_value_by_seed_on_the_page_is_in_a_committed_result():
    """Tables of other shapes: their rows name a strategy and list a value for each seed of the heading."""
    known, found = {}, 0
    for path in RESULTS.rglob("results/*.json"):
        result = json.loads(path.read_text())
        value = result["points"][-1]["evaluation"]["mean_bits_per_byte"]
        known.setdefault(result["seed"], set()).add(f"{value:.4f}")
    seeds = []
    for line in PAGE.splitlines():
        if heading := SEEDS.search(line):
            seeds = [int(s) for s in re.findall("[0-9]+", heading[0])]
        elif not line.startswith("|"):
            seeds = []
        elif seeds and (values := re.findall(r"\b2\.\d{4}\b", line)):
            for seed, value in zip(seeds, values, strict=False):
                assert value in known[seed], (seed, value, line)
                found += 1
    assert found > 60


def test_what_a_folder_lacks_is_named():
    with pytest.raises(ValueError, match="no result of dsri"):
        selection_tables.read(RESULTS / "fresh_13_15/results", "mads", "moore_lewis", ["dsri"])
    with pytest.raises(ValueError, match="seed 16"):
        selection_tables.read(RESULTS / "fresh_13_15/results", "mads", "moore_lewis", None, [13, 16])
