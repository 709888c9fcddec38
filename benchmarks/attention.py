"""Attention inside packed rows on a CPU: tiles against a mask over whole rows and against is_causal without documents.

    OMP_NUM_THREADS=1 python -m benchmarks.attention --length 512 --documents 1 2 4 16 64 mixed
    OMP_NUM_THREADS=1 python -m benchmarks.attention step --model 10m --length 512 --rows 8 --documents 1 4 mixed
    OMP_NUM_THREADS=1 python -m benchmarks.attention elementwise

The ways take turns, in CPU time, and a ratio is the median over the turns of (this way / mask), with quartiles. `is_causal` lets
documents of a row see each other: another result, as a mark of what rows of one document cost in other trainers. The second form
times whole training steps of a decoder, now and with what was there before: the mask, and elementwise operations one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from mads.config.schema import ModelConfig
from mads.data.batch import PackedBatch, make_batch
from mads.kernels.elementwise import rms_norm, rms_norm_reference, swiglu, swiglu_reference
from mads.kernels.packed_attention import Segments, packed_attention
from mads.model import Decoder
from mads.model.rope import apply_rope, rope_tables, split_and_turn

KEYS = ("hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads", "ffn_hidden_size", "vocab_size")
MODELS = {"1m": (128, 4, 4, 2, 384, 4096), "10m": (256, 8, 8, 4, 768, 8192)}


def batch_of(rows: int, length: int, documents: str, vocabulary: int = 4096) -> PackedBatch:
    """Full rows. documents: their number in a row, equally long; or mixed: lengths from a log-normal law with mean length / 5."""
    draw = np.random.default_rng(0)

    def lengths():
        if documents != "mixed":
            return [length // int(documents)] * int(documents)
        found = []
        while sum(found) < length:
            found.append(min(length - sum(found), 1 + int(draw.lognormal(np.log(length / 5) - 0.5))))
        return found

    return make_batch([[draw.integers(0, vocabulary, n) for n in lengths()] for _ in range(rows)], length)


def take_turns(ways: dict[str, Callable[[], None]], turns: int) -> dict[str, np.ndarray]:
    """CPU seconds of each way in each turn, after one turn that does not count."""
    seconds = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(of: np.ndarray, to: np.ndarray) -> str:
    low, middle, high = np.quantile(of / to, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def peak_mib(way: Callable[[], None]) -> float:
    """Most resident memory beyond what was there before, on Linux with glibc."""
    resident = lambda field: next(  # noqa: E731
        int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)
    )
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier turns have freed would be used again, unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    way()
    return resident("VmHWM") - before


def attention(args) -> None:
    """A table by documents in a row: forward and backward of one layer, the plan or mask made once for `layers` layers."""
    heads, kv_heads, width, rows = args.heads, args.kv_heads, args.head_dim, max(1, args.tokens // args.length)
    qkv = torch.randn(rows, args.length, heads + 2 * kv_heads, width, requires_grad=True)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 2)
    upstream = torch.randn(rows, args.length, heads, width)

    def causal(segments):
        at = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*at, is_causal=True, enable_gqa=heads != kv_heads).transpose(1, 2)

    print(f"{rows} rows of {args.length}, {heads} heads, {kv_heads} KV heads, head size {width}\n")
    print("| documents in a row | mask ms, forward + backward | tiles / mask | is_causal / mask", end="")
    print(" | calls | plan ms | peak MiB mask, tiles |\n|---|---|---|---|---|---|---|")
    for documents in args.documents:
        ids = batch_of(rows, args.length, documents).segments
        build = {
            "mask": lambda ids=ids: Segments.dense(ids, torch.float32),
            "tiles": lambda ids=ids: Segments.build(ids, "sdpa", torch.float32),
        }
        made = {name: make() for name, make in build.items()}
        forward = {name: lambda s=segments: packed_attention(q, k, v, s) for name, segments in made.items()}
        forward["is_causal"] = lambda: causal(None)
        there = take_turns(forward, args.turns)
        ways = {name: lambda f=f: torch.autograd.grad(f(), qkv, upstream) for name, f in forward.items()}
        whole = take_turns(ways, args.turns)
        planning = np.median(take_turns({"plan": build["tiles"]}, 5)["plan"])
        peaks = [peak_mib(lambda m=m: torch.autograd.grad(packed_attention(q, k, v, m()), qkv, upstream)) for m in build.values()]
        f, b = np.median(there["mask"]) * 1e3, np.median(whole["mask"] - there["mask"]) * 1e3
        ratios = (ratio(whole[name], whole["mask"]) for name in ("tiles", "is_causal"))
        calls = len(made["tiles"].plan.tiles)
        print(f"| {documents} | {f:.1f} + {b:.1f} |", *(f"{r} |" for r in ratios), end=" ")
        print(f"{calls} | {planning * 1e3:.2f} | {peaks[0]:.0f}, {peaks[1]:.0f} |", flush=True)


@contextlib.contextmanager
def before(mask: bool = True, elementwise: bool = True):
    """Inside, models run as they did without tiles, and without the kernels of mads.kernels.elementwise and split_and_turn."""

    def slices(qkv, cos, sin, heads, kv_heads):
        turned = apply_rope(qkv[:, :, : heads + kv_heads], cos, sin)
        return *turned.split([heads, kv_heads], 2), qkv[:, :, heads + kv_heads :]

    with contextlib.ExitStack() as stack:
        if mask:
            dense = classmethod(lambda cls, ids, backend, dtype, *rest: cls.dense(ids, dtype))
            stack.enter_context(mock.patch.object(Segments, "build", dense))
        if elementwise:
            stack.enter_context(mock.patch("mads.tensor.layers.rms_norm", rms_norm_reference))
            stack.enter_context(mock.patch("mads.model.layers.swiglu", swiglu_reference))
            stack.enter_context(mock.patch("mads.model.layers.split_and_turn", slices))
        yield


def step(args) -> None:
    """Whole steps (forward, backward, AdamW) of a decoder: now, and with one or both of the changes taken back."""
    config = ModelConfig(**dict(zip(KEYS, MODELS[args.model])), tie_embeddings=True)
    model = Decoder(config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    print("| model | rows x length | documents in a row | now / before | tiles alone / before | s before |")
    print("|---|---|---|---|---|---|")
    for documents in args.documents:
        batch = batch_of(args.rows, args.length, documents, config.vocab_size)

        def train(batch=batch):
            total, _ = model(batch.tokens, batch.labels, batch.positions, batch.segments)
            (total / batch.valid_tokens).backward()
            optimizer.step()
            optimizer.zero_grad()

        def without(train=train, **changes):
            with before(**changes):
                train()

        ways = {"before": without, "tiles": lambda without=without: without(mask=False), "now": train}
        seconds = take_turns(ways, args.turns)
        ratios = (ratio(seconds[name], seconds["before"]) for name in ("now", "tiles"))
        cells = [args.model, f"{args.rows} x {args.length}", documents, *ratios, f"{np.median(seconds['before']):.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def elementwise(args) -> None:
    """Forward and backward of the elementwise parts of one layer, on 4,096 positions."""
    print("| what | size | ms of the reference | ours / reference |\n|---|---|---|---|")
    for hidden, inner, heads, kv_heads in ((128, 384, 4, 2), (256, 768, 8, 4)):
        x, weight = torch.randn(32, 128, hidden, requires_grad=True), torch.ones(hidden, requires_grad=True)
        both, qkv = (torch.randn(32, 128, n, requires_grad=True) for n in (2 * inner, 32 * (heads + 2 * kv_heads)))
        tables = rope_tables(torch.arange(128).expand(32, 128), 32, 1e4, torch.float32)

        def turned(plain, qkv, tables=tables, heads=heads, kv_heads=kv_heads):
            split = qkv.unflatten(-1, (-1, 32))
            if not plain:
                return split_and_turn(split, *tables, heads, kv_heads)
            both = apply_rope(split[:, :, : heads + kv_heads], *tables)
            return *both.split([heads, kv_heads], 2), split[:, :, heads + kv_heads :]

        def run(f, inputs):
            outputs = f(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            leaves = [x for x in inputs if isinstance(x, torch.Tensor)]
            torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])

        cases = {
            "RMSNorm": ((x, weight, 1e-5), rms_norm_reference, rms_norm),
            "SwiGLU": ((both,), swiglu_reference, swiglu),
            "RoPE with the cut into Q, K, V": ((qkv,), partial(turned, True), partial(turned, False)),
        }
        for name, (inputs, reference, ours) in cases.items():
            ways = {"reference": partial(run, reference, inputs), "ours": partial(run, ours, inputs)}
            seconds = take_turns(ways, args.turns)
            milliseconds = 1e3 * np.median(seconds["reference"])
            print(f"| {name} | {hidden} | {milliseconds:.2f} | {ratio(seconds['ours'], seconds['reference'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("attention", "step", "elementwise"), default="attention")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--documents", nargs="+", default=["1", "2", "4", "16", "64", "mixed"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--model", choices=tuple(MODELS), default="10m")
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    {"attention": attention, "step": step, "elementwise": elementwise}[args.what](args)


if __name__ == "__main__":
    main()
