"""What one forward pass keeps for backward: an exact count of the tensors that autograd saves, without and with recomputation.

    OMP_NUM_THREADS=1 python -m benchmarks.activation_memory --model nano --rows 2 --seq-length 128
    OMP_NUM_THREADS=1 python -m benchmarks.activation_memory --model paper_373m --rows 1 --seq-length 2048

Every storage is counted once; parameters are not. Counted with one and with two layers: the difference is what a layer keeps, and
the model's whole depth follows from it exactly.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import yaml

import mads.conf
from mads.config.schema import ModelConfig
from mads.model import Decoder
from mads.model.placement import Placement


def kept_bytes(config, rows: int, seq_length: int, recompute: str) -> int:
    """Bytes that are kept between forward and backward of `rows` full rows, in float32 on the CPU."""
    model = Decoder(config, Placement(recompute=recompute))
    tokens = torch.zeros(rows, seq_length, dtype=torch.int64)
    positions = torch.arange(seq_length).expand(rows, seq_length)
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no two have the same address

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, tokens, positions, torch.zeros_like(tokens))
    return sum(storage.nbytes() for storage in kept.values())


def main() -> None:
    """Print one line of a Markdown table for each kind of recomputation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seq-length", type=int, default=128)
    args = parser.parse_args()
    config = ModelConfig(**yaml.safe_load((Path(mads.conf.__path__[0]) / "model" / f"{args.model}.yaml").read_text()))
    plain = None
    for recompute in ("none", "selective", "full"):
        one, two = (kept_bytes(replace(config, num_layers=n), args.rows, args.seq_length, recompute) for n in (1, 2))
        layer = two - one
        plain = plain or layer
        whole = one + (config.num_layers - 1) * layer
        each = layer / (args.rows * args.seq_length)
        print(f"| {args.model} | {recompute} | {each:,.0f} | {layer / plain:.3f} | {one - layer:,} | {whole:,} |")


if __name__ == "__main__":
    main()
