"""The statistics behind the committed figures, against hand-made ranks and a simulated measurement."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.rank_statistics import bootstrap_interval, spearman, split_half_reliability  # noqa: E402


def test_spearman_gives_ties_their_mean_rank():
    first, second = np.array([3.0, 1.0, 3.0, 7.0, 5.0]), np.array([2.0, 2.0, 8.0, 9.0, 2.0])
    ranks = np.array([2.5, 1.0, 2.5, 5.0, 4.0]), np.array([2.0, 2.0, 4.0, 5.0, 2.0])  # by hand
    assert spearman(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    assert spearman(first, -np.exp(first)) == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [[1.0, 1.0, 1.0], [1.0, np.nan, 2.0], [1.0, 2.0]])
def test_spearman_refuses_what_cannot_be_ranked(bad):
    with pytest.raises(ValueError):
        spearman(np.array(bad), np.array([1.0, 2.0, 3.0]))


def test_split_half_reliability_is_the_share_of_variance_that_repeats():
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=20000), rng.normal(size=(20000, 4))
    # The mean of 4 repeats has noise variance 1/4: reliability 1 / (1 + 1/4) for Pearson; ranks of normals agree slightly less.
    assert split_half_reliability(truth[:, None] + noise) == pytest.approx(0.8, abs=0.02)
    assert split_half_reliability(np.repeat(truth[:, None], 2, axis=1)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="even"):
        split_half_reliability(noise[:, :3])


def test_split_half_reliability_uses_every_way_to_halve():
    rng = np.random.default_rng(1)
    repeats = rng.normal(size=(30, 1)) + rng.normal(size=(30, 4))
    by_hand = [
        spearman(repeats[:, a].mean(1), repeats[:, b].mean(1)) for a, b in (([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2]))
    ]
    assert split_half_reliability(repeats) == pytest.approx(2 * np.mean(by_hand) / (1 + np.mean(by_hand)))


def test_bootstrap_interval_covers_the_estimate_and_narrows_with_more_pairs():
    rng = np.random.default_rng(2)
    first = rng.normal(size=400)
    second = first + rng.normal(size=400)
    low, high = bootstrap_interval(first, second, draws=300)
    few = bootstrap_interval(first[:40], second[:40], draws=300)
    assert low < spearman(first, second) < high and few[1] - few[0] > 2 * (high - low)
