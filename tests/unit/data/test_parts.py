import numpy as np
import pytest

from mads.data.parts import window_lengths


@pytest.mark.parametrize("seq_length, shortest", [(32, 16), (32, 2), (7, 4), (128, 16), (2, 1)])
def test_windows_lose_nothing_and_keep_both_limits(seq_length, shortest):
    for tokens in range(0, 5 * seq_length):
        lengths = window_lengths(tokens, seq_length, shortest)
        if tokens < shortest:
            assert len(lengths) == 0
            continue
        assert lengths.sum() == tokens and lengths.min() >= shortest and lengths.max() <= seq_length
        assert len(lengths) == -(-tokens // seq_length)  # never more windows than needed
        full, rest = divmod(tokens, seq_length)
        if rest == 0 or rest >= shortest:
            assert lengths.tolist() == [seq_length] * full + [rest] * (rest > 0)
        else:
            assert lengths[:-2].tolist() == [seq_length] * (full - 1) and 0 <= lengths[-2] - lengths[-1] <= 1


def test_windows_refuse_a_minimum_that_cannot_be_kept():
    with pytest.raises(ValueError, match="min_sample_tokens 17 must be between 1 and half of seq_length 32"):
        window_lengths(40, 32, 17)
    assert window_lengths(10, 7, 4).dtype == np.int64
