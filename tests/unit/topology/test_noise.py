"""Counter-based randomness: pure in (seed, stream, round, id), and statistically what it says."""

import numpy as np
import pytest

from mads.noise import gumbel, hash64, uniform

IDS = np.arange(200_000, dtype=np.int64) + (np.int64(5) << 40)
EULER = 0.5772156649015329


def test_x1_draws_do_not_depend_on_chunks_order_or_integer_type():
    whole = hash64(1, "a", 2, IDS)
    assert np.array_equal(np.concatenate([hash64(1, "a", 2, c) for c in np.array_split(IDS, 7)]), whole)
    order = np.random.default_rng(0).permutation(len(IDS))
    assert np.array_equal(hash64(1, "a", 2, IDS[order]), whole[order])
    assert np.array_equal(hash64(1, "a", 2, IDS.astype(np.uint64)), whole)
    assert np.array_equal(hash64(1, "a", 2, IDS[:3].tolist()), whole[:3])
    assert len(hash64(1, "a", 2, np.zeros(0, np.int64))) == 0
    assert len(np.unique(whole)) == len(whole)  # the mixer is a bijection


@pytest.mark.parametrize("other", [(2, "a", 2), (1, "b", 2), (1, "a", 3), (12, "a", 2), (1, "a/2", 2)])
def test_every_part_of_the_key_changes_the_draw(other):
    first, second = uniform(1, "a", 2, IDS), uniform(*other, IDS)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01  # 4.5 standard errors
    assert (first != second).all()


def test_known_values_stay_so_that_decisions_of_old_runs_can_be_repeated():
    # Python integers, written out from Steele, Lea and Flood's finaliser.
    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    import hashlib

    key = int.from_bytes(hashlib.blake2b(b"3/probes/4", digest_size=8).digest(), "little")
    for i in (0, 1, 2**40 + 7, 2**62):
        assert int(hash64(3, "probes", 4, np.array([i]))[0]) == mix(mix(i) ^ key)


def test_uniform_noise_is_uniform_and_in_the_open_interval():
    u = uniform(0, "u", 0, IDS)
    assert u.min() > 0 and u.max() < 1
    n = len(u)
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n) and abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(n)  # neighbouring ids
    bits = hash64(0, "u", 0, IDS)
    ones = np.array([((bits >> np.uint64(b)) & np.uint64(1)).mean() for b in range(64)])
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(n)


def test_gumbel_noise_has_its_moments_and_draws_in_proportion():
    g = gumbel(0, "g", 0, IDS)
    assert np.isfinite(g).all()
    assert abs(g.mean() - EULER) < 5 * np.sqrt(np.pi**2 / 6 / len(g)) and abs(g.var() - np.pi**2 / 6) < 0.05
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    winners = np.bincount((g.reshape(-1, 4) + np.log(weights)).argmax(1), minlength=4) / (len(g) / 4)
    assert np.abs(winners - weights).max() < 5 * 0.5 / np.sqrt(len(g) / 4)
