"""Learning rates against formulas written per schedule, over whole runs."""

from types import SimpleNamespace

import numpy as np
import pytest

from mads.train.schedule import learning_rate

PEAK = 3e-3


def rates(steps, **schedule):
    return np.array([learning_rate(s, steps, PEAK, SimpleNamespace(**schedule)) for s in range(steps)])


def warmed(expected, warmup):
    """The first `warmup` rates rise linearly and reach the peak at the last of them."""
    expected = np.array(expected, dtype=np.float64)
    expected[:warmup] = np.linspace(0, PEAK, warmup + 1)[1:]
    return expected


@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_constant(warmup):
    np.testing.assert_allclose(rates(100, name="constant", warmup_steps=warmup), warmed([PEAK] * 100, warmup))


@pytest.mark.parametrize("steps, warmup, ratio", [(100, 20, 0.1), (7, 0, 0.0), (50, 49, 0.5), (1, 0, 0.1)])
def test_cosine_falls_from_the_peak_by_half_a_wave(steps, warmup, ratio):
    # Angles as complex numbers: exp(i pi k / n) has the cosine as its real part.
    n = max(1, steps - warmup)
    wave = np.exp(1j * np.pi * (np.arange(steps) - warmup) / n).real
    expected = warmed(PEAK * ratio + (PEAK - PEAK * ratio) * (1 + wave) / 2, warmup)
    found = rates(steps, name="cosine", warmup_steps=warmup, min_ratio=ratio)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[warmup] == pytest.approx(PEAK) and (np.diff(found[warmup:]) <= 0).all()


@pytest.mark.parametrize(
    "steps, warmup, ratio, fraction", [(100, 20, 0.0, 0.2), (100, 0, 0.1, 0.5), (10, 2, 0.0, 1.0), (3, 0, 0.0, 0.01)]
)
def test_wsd_is_flat_and_ends_in_a_straight_line(steps, warmup, ratio, fraction):
    decay = max(1, round(fraction * steps))
    flat = steps - decay
    line = np.interp(np.arange(steps), [flat, steps], [PEAK, PEAK * ratio])
    found = rates(steps, name="wsd", warmup_steps=warmup, min_ratio=ratio, decay_fraction=fraction)
    np.testing.assert_allclose(found, warmed(line, warmup), rtol=1e-12)
    assert found[-1] > PEAK * ratio  # the line ends after the last step: none is wasted on a rate of 0


def test_the_rate_depends_on_the_step_alone_so_a_resumed_run_has_the_same():
    schedule = SimpleNamespace(name="cosine", warmup_steps=5, min_ratio=0.1)
    assert [learning_rate(s, 40, PEAK, schedule) for s in range(20, 40)] == rates(40, **vars(schedule))[20:].tolist()


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="schedule.name='steps' is not one of constant, cosine, wsd"):
        learning_rate(30, 100, PEAK, SimpleNamespace(name="steps", warmup_steps=0))
