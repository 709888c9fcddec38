"""DeepSpeed's `zero_optimization` section from the configuration."""

from __future__ import annotations

from typing import Any


def zero_settings(parallel) -> dict[str, Any]:
    """The section for the config section `parallel`: stage, offloading, and the user's further keys as they are."""
    settings: dict[str, Any] = {"stage": parallel.zero_stage} | dict(parallel.zero_options)
    for key in ("offload_optimizer", "offload_param"):
        offload = getattr(parallel, key)
        if offload.device != "none":
            settings[key] = {"device": offload.device, "pin_memory": offload.pin_memory}
            if offload.nvme_path is not None:
                settings[key]["nvme_path"] = offload.nvme_path
    return settings
