"""MFU: only against a dense peak that is known."""

import pytest

from mads.logging.throughput import peak_flops, utilisation


@pytest.mark.parametrize(
    "device, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA GB200", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
    ],
)
def test_a_device_has_its_own_peak_or_none(device, peak):
    assert peak_flops(device, "bf16") == peak
    assert peak_flops(device, "fp32") is None


def test_utilisation_by_hand():
    # 8 devices, 1e9 FLOPs a token, 160,000 tokens in 2 s: 8e13 FLOP/s in all, 1e13 each
    assert utilisation(1e9, 160_000, 2.0, 8, 4e13) == {"tflops": 10.0, "mfu": 0.25}
    assert utilisation(1e9, 160_000, 2.0, 8, None) == {"tflops": 10.0}
    assert utilisation(1e9, 0, 2.0, 8, 4e13) == utilisation(1e9, 5, 0.0, 8, 4e13) == {}
