"""The statistics of benchmarks.reward_usefulness and group_design against scipy, by hand, and what is committed."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import group_design, reward_horizon, reward_usefulness  # noqa: E402
from benchmarks.usefulness_tables import agreement_table, gain_text, gains  # noqa: E402

LABELS = {"quality": ["a", "b", "c", "d"], "domain": ["x", "y", "z"], "topic": ["t", "u", "v"]}
SEEDS = 4


@pytest.fixture
def record():
    """Four seeds of a truth, one kind with two draws."""
    rng = np.random.default_rng(2)
    gain = {f"{s}/none": {"audit": 5.0 + 0.01 * s} for s in range(SEEDS)}
    for agent, own in LABELS.items():
        for label in own:
            level = rng.normal(5, 0.1)
            gain |= {f"{s}/{agent}/{label}": {"audit": float(level + rng.normal(0, 0.05))} for s in range(SEEDS)}
    means = [{a: {"marginal": rng.normal(size=len(own)).tolist()} for a, own in LABELS.items()} for _ in range(2)]
    kinds = {f"one step/{i}": {"means": m, "flops": 600.0} for i, m in enumerate(means)}
    return {"labels": LABELS, "gain": gain, "kinds": kinds, "flops_per_token": 3.0, "steps_trained": 98}


def truth_of(record, agent):
    gain = record["gain"]
    rows = [[gain[f"{s}/none"]["audit"] - gain[f"{s}/{agent}/{l}"]["audit"] for s in range(SEEDS)] for l in LABELS[agent]]
    return np.array(rows)


def test_agreement_is_the_mean_of_the_draws_rank_correlations(record):
    found = reward_usefulness.agreement(record, SEEDS)["one step"]
    draws = [record["kinds"][f"one step/{i}"]["means"] for i in range(2)]
    for agent in LABELS:
        expected = [spearmanr(d[agent]["marginal"], truth_of(record, agent).mean(1)).statistic for d in draws]
        assert found[agent] == pytest.approx(np.mean(expected))
    whole = np.concatenate([truth_of(record, a).mean(1) for a in LABELS])
    expected = [spearmanr(np.concatenate([d[a]["marginal"] for a in LABELS]), whole).statistic for d in draws]
    assert found["all"] == pytest.approx(np.mean(expected))
    assert found["tokens of training that a round costs"] == 200.0


def test_a_design_s_draws_are_compared_with_the_truth_and_with_each_other(record):
    truth = group_design.given_truth(record, LABELS, 98)
    np.testing.assert_allclose(truth["domain"], truth_of(record, "domain").mean(1))
    draws = [{"means": record["kinds"][f"one step/{i}"]["means"], "tokens": 100.0 * (i + 1)} for i in range(2)]
    found = group_design.agreement(draws, truth)
    whole = [np.concatenate([d["means"][a]["marginal"] for a in LABELS]) for d in draws]
    assert found["draws"] == pytest.approx(spearmanr(*whole).statistic)
    assert found["all"] == pytest.approx(reward_usefulness.agreement(record, SEEDS)["one step"]["all"])
    assert found["tokens"] == 150.0


def test_the_truth_of_another_checkpoint_is_refused(record):
    with pytest.raises(ValueError, match="of step 98"):
        group_design.given_truth(record, LABELS, 196)
    with pytest.raises(ValueError, match="labels"):
        group_design.given_truth(record, LABELS | {"domain": ["x"]}, 98)


def test_a_gain_has_its_error_over_seeds(record):
    values = gains(record, "quality", "b")
    np.testing.assert_allclose(values, truth_of(record, "quality")[1])
    assert gain_text(np.array([0.010, 0.030])) == "+20 ± 10"


@pytest.mark.parametrize("step", [98, 196, 392])
def test_what_is_committed_follows_from_its_own_measurements(step):
    committed = json.loads((ROOT / f"benchmarks/reward_usefulness/step_{step}.json").read_text())
    again = reward_usefulness.agreement(committed, SEEDS)
    assert set(again) == set(committed["agreement"])
    for kind, found in again.items():
        assert found == pytest.approx(committed["agreement"][kind])
    assert f"| one step | {again['one step']['domain']:.2f} (" in agreement_table([committed])


PAGE = (ROOT / "benchmarks/reward_truth.md").read_text()


def told(draws, truth):
    """Each draw's rank correlation with the truth over all labels, as the page has them."""
    whole = [np.concatenate([d["means"][a]["marginal"] for a in LABELS]) for d in draws]
    return ", ".join(f"{spearmanr(w, np.concatenate([truth[a] for a in LABELS])).statistic:.2f}"[1:] for w in whole)


@pytest.mark.parametrize("step", [98, 196, 392])
def test_the_page_s_figures_of_other_moments_are_those_of_the_committed_records(step):
    usefulness = json.loads((ROOT / f"benchmarks/reward_usefulness/step_{step}.json").read_text())
    truth = {a: [gains(usefulness, a, l).mean() for l in own] for a, own in usefulness["labels"].items()}
    for kind in reward_usefulness.LATER:
        draws = [v for k, v in usefulness["kinds"].items() if k.rsplit("/", 1)[0] == kind]
        assert len(draws) == reward_usefulness.DRAWS_LATER and f"| {told(draws, truth)} |" in PAGE
    groups = json.loads((ROOT / f"benchmarks/group_probes/later_step_{step}.json").read_text())
    for design in dict.fromkeys(key.rsplit("/", 1)[0] for key in groups["rewards"]):
        draws = [v for k, v in groups["rewards"].items() if k.rsplit("/", 1)[0] == design]
        assert len(draws) == 6 and f"| {told(draws, truth)} |" in PAGE


@pytest.mark.parametrize("name", [*group_design.DESIGNS, *group_design.TRAVELLING])
def test_a_design_is_what_its_name_says(name):
    config = group_design.config_of(name, 5)
    steps, rows, *mix = (int(n) for n in re.findall("[0-9]+", name))
    assert (config.steps, config.step_rows, config.mix_rows, config.reference_examples) == (steps, rows, *(mix or [0]), 5)
    assert config.rate_factor == (2 if name.endswith("twice the rate") else 1)


def test_the_horizon_on_the_page_follows_from_the_committed_losses():
    record = json.loads((ROOT / "benchmarks/reward_horizon.json").read_text())
    usefulness = json.loads((ROOT / "benchmarks/reward_usefulness/step_147.json").read_text())
    truth = [gains(usefulness, a, l).mean() for a, own in record["labels"].items() for l in own]
    names = [f"{a}/{l}" for a, own in record["labels"].items() for l in own]
    for way, (_, places) in reward_horizon.WAYS.items():
        losses = np.array([record["losses"][f"0/{way}/{name}"] for name in names])
        found = [spearmanr(record["losses"][f"0/{way}/none"][i] - losses[:, i], truth).statistic for i in range(len(places))]
        assert record["agreement"][way] == pytest.approx(dict(zip(map(str, places), found, strict=True)))
        assert all(f"{steps}: {value:.2f}".replace("0.", ".") in PAGE for steps, value in zip(places, found, strict=True))


@pytest.mark.parametrize("step, designs", [(147, 12), (245, 2)])
def test_the_page_s_figures_of_moments_that_nobody_chose_are_those_of_the_committed_records(step, designs):
    usefulness = json.loads((ROOT / f"benchmarks/reward_usefulness/step_{step}.json").read_text())
    truth = {a: [gains(usefulness, a, l).mean() for l in own] for a, own in usefulness["labels"].items()}
    shown = 0
    for path in sorted((ROOT / "benchmarks/group_probes").glob(f"*step_{step}*.json")):
        groups = json.loads(path.read_text())
        for design in dict.fromkeys(key.rsplit("/", 1)[0] for key in groups["rewards"]):
            draws = [v for k, v in groups["rewards"].items() if k.rsplit("/", 1)[0] == design]
            assert f"| {told(draws, truth)} |" in PAGE
            shown += 1
    assert shown == designs
