"""Checks of token ids and labels that do not stall a GPU."""

from __future__ import annotations

import torch


def require_ids(ids: torch.Tensor, size: int, what: str, ignore: int | None = None) -> None:
    """Check 0 <= id < size for every id that is not `ignore`.

    Under tensor parallelism an id outside of the vocabulary belongs to no rank's shard and would silently become a zero row or a
    wrong loss. On CUDA the check is an asynchronous device assertion, so that the host does not wait for it.

    Raises:
        ValueError: on the CPU, with the first bad id, its position and the size.
    """
    if ids.device.type == "meta" or not ids.numel():
        return
    bad = (ids < 0) | (ids >= size)
    if ignore is not None:
        bad &= ids != ignore
    if ids.device.type == "cuda":
        torch._assert_async(~bad.any(), f"a {what} is outside of 0 .. {size - 1}")
    elif bad.any():
        position = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{what} {int(ids[position])} at position {position} is outside of the vocabulary 0 .. {size - 1}; "
            "the data was prepared with another tokenizer, or model.vocab_size is too small"
        )
