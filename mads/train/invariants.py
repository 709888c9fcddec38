"""Checks of a running job: what must be equal on all ranks is hashed and compared, and a difference stops the run by name."""

from __future__ import annotations

import numpy as np

from mads import collectives
from mads.collectives import digest


def check_replicas(step: int, model, topology, zero_stage: int, batch_ids: np.ndarray, pending: np.ndarray) -> None:
    """Raise on all ranks unless replicas hold the same parameters, saw the same global batch and follow the same decision.

    Args:
        model: mads.train.reward_model.EngineRewardModel; its digest is exact to the bit.
        batch_ids, pending: sample ids of the last global batch and of the decision in use.

    Raises:
        collectives.ReplicaMismatchError: naming what differs and the ranks.
    """
    control = topology.group("control")
    values = {"the global batch": digest(batch_ids), "the decision": digest(pending)}
    if zero_stage < 3:  # ZeRO 3 keeps no replica of a parameter
        values["the parameters"] = model.digest()
    for what, value in values.items():
        collectives.assert_equal_on_ranks(value, control, f"after step {step}: {what}")
