"""How fast a run is against what its device can do: model FLOPs utilisation (MFU), only where the device's peak is known."""

from __future__ import annotations

import re

# Device name as CUDA tells it -> dense bf16 FLOP/s of its tensor cores with fp32 accumulation, from NVIDIA's data sheets (which
# print twice as much, "with sparsity", for most). The first that matches counts. A device that is not here has no MFU.
PEAKS = (
    (r"\bB200\b", 2250e12),
    (r"\bH[12]00 NVL\b", 835e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH200\b", 989e12),
    (r"\bH100\b", 989e12),
    (r"\bA[18]00\b", 312e12),
    (r"\bL40S\b", 362e12),
    (r"\bA10\b", 125e12),
)


def peak_flops(device: str, precision: str) -> float | None:
    """Dense peak of a device in FLOP/s, or None: an unknown device, a slice of one (MIG), or another precision than bf16."""
    if precision != "bf16" or "MIG" in device or "GB200" in device:
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device)), None)


def utilisation(flops_per_token: float, tokens: int, seconds: float, devices: int, peak: float | None) -> dict[str, float]:
    """What a train line says of speed: {"tflops": model TFLOP/s of one device} and, against a known peak, "mfu" beside it.

    flops_per_token: of the model, forward and backward (mads.model.shape): recomputed activations, rewards and padding do not
        count (PaLM, appendix B)
    seconds: spent in training steps, loader included
    """
    if seconds <= 0 or tokens <= 0:
        return {}
    rate = flops_per_token * tokens / seconds / devices
    return {"tflops": rate / 1e12} | ({} if peak is None else {"mfu": rate / peak})
