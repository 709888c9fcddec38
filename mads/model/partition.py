"""How consecutive pieces are dealt out to pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence


def partition(costs: Sequence[float], stages: int) -> list[int]:
    """Cut a list of costs into `stages` runs, none empty, so that the largest sum is the smallest possible, and among those cuts
    the sum of squares (the imbalance of the other stages too).

    Returns:
        stages + 1 borders: stage s holds the items borders[s] to borders[s + 1] - 1.

    Raises:
        ValueError: if there are fewer items than stages; the message names both.
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ValueError(f"{count} pieces of the model cannot be cut into {stages} pipeline stages; use at most {count} stages")
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[i]: ((largest sum, sum of squares), borders) of the first i items in the stages so far; i * i * stages steps.
    best = {0: ((0.0, 0.0), [0])}
    for stage in range(1, stages + 1):
        following = {}
        for end in range(stage, count - (stages - stage) + 1):
            options = []
            for start, ((largest, squares), borders) in best.items():
                if start < end:
                    own = before[end] - before[start]
                    options.append(((max(largest, own), squares + own * own), [*borders, end]))
            following[end] = min(options)
        best = following
    return best[count][1]
