"""What a step costs as it grows: tokens, parameters, documents in a row, ranks; and the memory of ZeRO 0-3. Page: scaling.md.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling --results FILE.jsonl [--only step weak zero] [--rounds 5]

Cells that the file holds are not measured again. All variants of a comparison exist at once and take their steps in turn, so a
machine whose speed wanders does so under each. fp32, one thread a process, gloo; tables are printed as Markdown.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.cells import exponent, line, measure_cells, on_ranks, quartiles

VOCABULARY, LENGTH = 4096, 128
SHAPE = {"hidden": 128, "layers": 4, "rows": 4, "passes": 2, "documents": 1, "length": LENGTH}
# What grows -> the variants of a comparison, by what differs from SHAPE.
GROWN = {
    "tokens": [{"passes": passes} for passes in (1, 2, 4, 8)],
    "layers": [{"layers": layers} for layers in (2, 4, 8, 16)],
    "hidden": [{"hidden": hidden} for hidden in (64, 128, 256)],
    "documents": [{"documents": documents, "length": 512, "rows": 2} for documents in (1, 4, 16, 64)],
    "length": [{"length": length, "rows": 1024 // length} for length in (128, 256, 512, 1024)],
}
WORLDS = (1, 2, 4)
ZERO_SHAPE = {
    "hidden": 256,
    "layers": 8,
    "rows": 1,
    "passes": 2,
    "documents": 1,
    "length": 32,
}  # 7.3M parameters, few activations
BUCKET = {"reduce_bucket_size": 1_200_000}  # holds the largest weight; DeepSpeed's own of 5e8 would hide what is measured
ZERO_OPTIONS = {1: BUCKET, 2: BUCKET, 3: {**BUCKET, "stage3_param_persistence_threshold": 1}}
# Bytes a parameter of (weights, gradients, optimizer states) in the ZeRO paper's mixed precision, and in plain fp32.
PAPER_BYTES = {"bf16": (2, 2, 12), "fp32": (4, 4, 8)}


# ---------------------------------------------------------------- engines and batches


def overrides_of(shape: dict) -> list[str]:
    """Of a configuration with such a model."""
    hidden = shape["hidden"]
    model = [f"model.hidden_size={hidden}", f"model.ffn_hidden_size={3 * hidden}", f"model.num_layers={shape['layers']}"]
    model += ["model.num_attention_heads=4", "model.num_key_value_heads=2", f"model.vocab_size={VOCABULARY}"]
    batch = [f"train.micro_batch_size={shape['rows']}", f"data.seq_length={shape['length']}"]
    return ["model=nano", "data=jsonl", "data.paths=[none]", "data.dir=none", "run_dir=none", *model, *batch]


def batches_of(shape: dict, rank: int) -> list:
    """Micro-batches of random tokens, every row full."""
    from mads.data.batch import make_batch

    rng, each = np.random.default_rng(rank), shape["length"] // shape["documents"]
    row = lambda: [rng.integers(0, VOCABULARY, each) for _ in range(shape["documents"])]  # noqa: E731
    return [make_batch([row() for _ in range(shape["rows"])], shape["length"]) for _ in range(shape["passes"])]


def engine_of(shape: dict, zero_stage: int, topology, bf16: bool = False, more: tuple[str, ...] = ()):
    """(engine, configuration)."""
    import torch

    from mads.config.compose import compose
    from mads.train.setup import build_engine

    size = shape["rows"] * shape["passes"] * topology.size("dp")
    config = compose([*overrides_of(shape), f"parallel=zero{zero_stage}", f"train.global_batch_size={size}", *more])
    dtype = torch.bfloat16 if bf16 else torch.float32
    return build_engine(config, topology, dtype, torch.device("cpu")), config


def mads_step(shape: dict, zero_stage: int, topology, batches) -> Callable[[], None]:
    """A training step of mads's engine."""
    engine, _ = engine_of(shape, zero_stage, topology)
    valid = sum(batch.valid_tokens for batch in batches) * topology.size("dp")
    return lambda: engine.train_step(batches, valid, 1e-4)


def torch_step(shape: dict, topology, batches, parallel: bool) -> Callable[[], None]:
    """The same in plain PyTorch: fused AdamW, clipping, the loss of the global batch. parallel: under DDP; else each rank trains
    alone, and nothing is sent at all."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from mads.config.compose import compose
    from mads.model.decoder import Decoder

    config, world = compose([*overrides_of(shape), "train.global_batch_size=64"]), topology.size("dp")
    module = Decoder(config.model)
    wrapped = DistributedDataParallel(module) if parallel else module
    decayed, plain = ([p for p in module.parameters() if (p.dim() > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    valid = sum(batch.valid_tokens for batch in batches)

    def step() -> None:
        total = torch.zeros((), dtype=torch.float64)
        for i, batch in enumerate(batches):
            if parallel:
                wrapped.require_backward_grad_sync = i == len(batches) - 1
            loss, _ = wrapped(batch.tokens, batch.labels, batch.positions, batch.segments)
            (loss / valid).backward()
            total += loss.detach().double()
        if parallel and world > 1:
            torch.distributed.all_reduce(total)
        total.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Variant -> CPU and wall seconds of its step in every round; all ranks start each step together."""
    import torch.distributed as dist

    spent: dict = {name: {"cpu": [], "wall": []} for name in steps}
    for round_ in range(-2, rounds):  # the first two warm up
        for name, step in steps.items():
            dist.barrier()
            busy, start = time.process_time(), time.perf_counter()
            step()
            if round_ >= 0:
                spent[name]["cpu"].append(time.process_time() - busy)
                spent[name]["wall"].append(time.perf_counter() - start)
    return spent


# ---------------------------------------------------------------- the cost of a step


def peak_bytes(run: Callable[[], None]) -> int:
    """By how much the resident memory of this process rises while `run` runs. Linux only: the high-water mark is set back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(field))
    return int(found.split()[1]) * 1024


def grown_steps(what: str, rounds: int) -> list[dict]:
    """One process: the variants of a comparison, each with its size, CPU seconds (quartiles) and the memory that a step takes."""
    from mads.model.shape import flops_per_token
    from mads.topology import Grid, Topology

    topology, variants, steps = Topology(Grid()), [], {}
    for i, changed in enumerate(GROWN[what]):
        shape = SHAPE | changed
        engine, config = engine_of(shape, 1, topology)
        batches = batches_of(shape, 0)
        valid = sum(batch.valid_tokens for batch in batches)
        steps[str(i)] = lambda engine=engine, batches=batches, valid=valid: engine.train_step(batches, valid, 1e-4)
        tokens = shape["rows"] * shape["passes"] * shape["length"]
        count = sum(s.numel() for s in engine.logical_shapes.values())
        variants.append({**shape, "tokens": tokens, "parameters": count})
        variants[-1]["flops"] = tokens * flops_per_token(config.model, shape["length"])
    spent = in_turn(steps, rounds)
    for variant, step, seconds in zip(variants, steps.values(), spent.values()):
        variant["cpu"] = quartiles(seconds["cpu"])
        variant["peak_bytes"] = peak_bytes(step)
    return variants


def weak_steps(rounds: int) -> dict:
    """One rank of weak scaling: variant -> CPU and wall seconds of every round."""
    import torch.distributed as dist

    from mads.topology import Grid, Topology

    topology = Topology(Grid(dp=dist.get_world_size()))
    batches = batches_of(SHAPE, dist.get_rank())
    steps = {
        "alone": torch_step(SHAPE, topology, batches, parallel=False),
        "DDP": torch_step(SHAPE, topology, batches, parallel=True),
    }
    steps |= {f"ZeRO {stage}": mads_step(SHAPE, stage, topology, batches) for stage in range(4)}
    return in_turn(steps, rounds)


def weak_cell(world: int, rounds: int) -> dict:
    """Variant -> wall (the slowest rank's) and CPU (the mean rank's) seconds of a step, and both over DDP's and the lone rank's
    of the same round: medians and quartiles."""
    by_rank, result = on_ranks(world, weak_steps, rounds), {}
    wall, cpu = (
        {name: reduce([rank[name][clock] for rank in by_rank], axis=0) for name in by_rank[0]}
        for clock, reduce in (("wall", np.max), ("cpu", np.mean))
    )
    for name in wall:
        result[name] = {"wall": quartiles(wall[name]), "cpu": quartiles(cpu[name])}
        for other in ("DDP", "alone"):
            result[name][f"wall over {other}"] = quartiles(wall[name] / wall[other])
            result[name][f"cpu over {other}"] = quartiles(cpu[name] / cpu[other])
    return result


# ---------------------------------------------------------------- the memory of ZeRO


def storages(known=()) -> dict:
    """Address -> storage of every live CPU tensor that is not among those known."""
    import torch

    gc.collect()
    found = {}
    for thing in gc.get_objects():
        try:
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
                # A gradient that only its parameter holds is no object of Python's.
                for tensor in (thing, thing.grad) if thing.is_leaf and thing.grad is not None else (thing,):
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        except (ReferenceError, RuntimeError):
            continue
    return {address: storage for address, storage in found.items() if address not in known}


def held_bytes(engine, known: dict) -> dict[str, int]:
    """Bytes of this rank's weights, optimizer states, and of the rest: gradients and the buckets that they travel in. Called when
    a micro-batch's backward pass has ended, so that no activation lives."""
    live = storages(known)
    address = lambda tensor: tensor.untyped_storage().data_ptr()  # noqa: E731
    weights = {address(p.ds_tensor if engine.zero_stage == 3 else p.data) for _, p in engine.parameters}
    weights |= {address(p.data) for _, p in engine.parameters}  # what ZeRO 3 has gathered and not let go
    states = {address(t) for flat, state in engine.state.held() for t in (flat, *state.values())} - weights
    size = lambda own: sum(storage.nbytes() for place, storage in live.items() if place in own)  # noqa: E731
    whole = sum(storage.nbytes() for storage in live.values())
    kept = {"weights": size(weights), "optimizer": size(states)}
    return {**kept, "gradients": whole - sum(kept.values()), "all": whole}


def zero_states() -> list[dict]:
    """One rank: what it holds at every stage, by tensors and by resident memory, with what the doctor estimates."""
    import torch.distributed as dist

    from mads.doctor.states import model_states
    from mads.topology import Grid, Topology

    world, result = dist.get_world_size(), []
    topology, batches = Topology(Grid(dp=world)), batches_of(ZERO_SHAPE, dist.get_rank())
    mads_step(ZERO_SHAPE | {"hidden": 64}, 1, topology, batches)()  # what a first engine imports is no engine's memory
    for precision in ("fp32", "bf16"):
        for stage in range(4):
            more = [f"parallel.zero_options.{key}={value}" for key, value in ZERO_OPTIONS.get(stage, {}).items()]
            known, looks = storages(), []
            ctypes.CDLL(None).malloc_trim(0)
            before = _status("VmRSS")
            engine, config = engine_of(ZERO_SHAPE, stage, topology, precision == "bf16", tuple(more))
            valid, backward = sum(batch.valid_tokens for batch in batches) * world, engine.engine.backward

            def watched(*given, engine=engine, backward=backward, known=known, looks=looks, before=before, **named):
                backward(*given, **named)
                ctypes.CDLL(None).malloc_trim(0)
                looks.append(held_bytes(engine, known) | {"resident": _status("VmRSS") - before})

            engine.engine.backward = watched
            for _ in range(2):  # the moments exist after the first step
                looks.clear()
                engine.train_step(batches, valid, 1e-4)
            shapes = [shape.numel() for shape in engine.logical_shapes.values()]
            doctor = model_states(sum(shapes), max(shapes), world, config.parallel, precision == "bf16")
            buckets = doctor.buckets if stage in (1, 3) else 0  # ZeRO 2 has given its own back by then
            row = {"precision": precision, "stage": stage, "parameters": sum(shapes), **max(looks, key=lambda look: look["all"])}
            result.append(row | {"doctor": doctor.resident + buckets, "buckets": buckets})
            del engine, backward, watched, looks, known
    return result


def zero_cell(world: int) -> list[dict]:
    """The fullest rank of each stage and precision."""
    by_rank = on_ranks(world, zero_states)
    return [max(rows, key=lambda row: row["all"]) | {"ranks": world} for rows in zip(*by_rank)]


def paper_bytes(parameters: int, stage: int, ranks: int, precision: str) -> tuple[float, float, float]:
    """(weights, gradients, optimizer states) of one rank by Rajbhandari et al. 2020, section 5: stage 1 cuts the states, stage 2
    the gradients too, stage 3 all."""
    cut = [3 <= stage, 2 <= stage, 1 <= stage]
    return tuple(parameters * each / (ranks if is_cut else 1) for each, is_cut in zip(PAPER_BYTES[precision], cut))


# ---------------------------------------------------------------- tables


def grown_table(what: str, rows: list[dict]) -> str:
    """With the laws: of tokens and layers a line, of the others the exponent."""
    x = [row["flops"] if what in ("hidden", "layers") else row[what] for row in rows]
    cpu, peak = [row["cpu"][0] for row in rows], [row["peak_bytes"] / 2**20 for row in rows]
    a, b, worst = line(x, cpu)
    out = [
        f"| {what} | tokens | parameters | GFLOP | CPU s | quartiles | a + b x | GFLOP/s | MiB more in a step |",
        "|" + "---|" * 9,
    ]
    for row, value, seconds, mib in zip(rows, x, cpu, peak):
        flops = row["flops"] / 1e9
        out.append(
            f"| {row[what]} | {row['tokens']:,} | {row['parameters']:,} | {flops:.1f} | {seconds:.3f} | {row['cpu'][1]:.3f} - "
            f"{row['cpu'][2]:.3f} | {a + b * value:.3f} | {flops / seconds:.0f} | {mib:.0f} |"
        )
    unit = "FLOP" if what in ("hidden", "layers") else what
    out.append(f"\nSeconds = {a:.4g} + {b:.4g} x {unit}, every point within {worst:.1%}; exponent {exponent(x, cpu):.2f}.")
    if min(peak) > 0:
        start, each, worst = line(x, peak)
        out[-1] += f" Memory = {start:.3g} + {each:.3g} x {unit} MiB, within {worst:.0%}."
    return "\n".join(out)


def weak_table(cells: dict[int, dict]) -> str:
    """Over DDP in the same round, and what communication takes: all that is not the lone rank's work."""
    out = ["| ranks | variant | wall s | CPU s a rank | wall over DDP | CPU over DDP | not the lone step, of wall | of CPU |"]
    out.append("|" + "---|" * 8)
    with_spread = lambda v: f"{v[0]:.3f} ({v[1]:.3f} - {v[2]:.3f})"  # noqa: E731
    for world, variants in sorted(cells.items()):
        for name, v in variants.items():
            rest = [f"{1 - 1 / v[f'{clock} over alone'][0]:.1%}" for clock in ("wall", "cpu")]
            ratios = [with_spread(v[f"{clock} over DDP"]) for clock in ("wall", "cpu")]
            out.append(f"| {world} | {name} | {v['wall'][0]:.3f} | {v['cpu'][0]:.3f} | {' | '.join([*ratios, *rest])} |")
    return "\n".join(out)


def zero_table(rows: list[dict]) -> str:
    """Bytes a parameter."""
    columns = ["ranks", "precision", "stage", "weights", "gradients, buckets", "optimizer", "all", "ZeRO paper", "ratio"]
    out = [f"| {' | '.join([*columns, 'doctor', 'ratio', 'resident'])} |"]
    out.append("|" + "---|" * 12)
    for row in rows:
        count, paper = row["parameters"], sum(paper_bytes(row["parameters"], row["stage"], row["ranks"], row["precision"]))
        each = [f"{row[part] / count:.2f}" for part in ("weights", "gradients", "optimizer", "all")]
        each += [f"{paper / count:.2f}", f"{row['all'] / paper:.3f}", f"{row['doctor'] / count:.2f}"]
        each += [f"{row['all'] / row['doctor']:.3f}", f"{row['resident'] / count:.2f}"]
        out.append(f"| {row['ranks']} | {row['precision']} | {row['stage']} | {' | '.join(each)} |")
    return "\n".join(out)


def tables(found: dict) -> str:
    """Markdown of what was measured."""
    parts = [grown_table(what, found[f"step/{what}"]) for what in GROWN if f"step/{what}" in found]
    weak = {world: found[f"weak/{world}"] for world in WORLDS if f"weak/{world}" in found}
    zero = [row for world in WORLDS for row in found.get(f"zero/{world}", [])]
    parts += [weak_table(weak)] if weak else []
    parts += [zero_table(zero)] if zero else []
    return "\n\n".join(parts)


def main() -> None:
    """Measure what the file lacks, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one a cell")
    parser.add_argument("--only", nargs="+", default=["step", "weak", "zero"], help="cells whose names begin so")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cells = [(f"step/{what}", lambda what=what: on_ranks(1, grown_steps, what, args.rounds)[0]) for what in GROWN]
    cells += [(f"weak/{world}", lambda world=world: weak_cell(world, 2 * args.rounds)) for world in WORLDS]
    cells += [(f"zero/{world}", lambda world=world: zero_cell(world)) for world in WORLDS[1:]]
    wanted = [cell for cell in cells if cell[0].startswith(tuple(args.only))]
    print("\n" + tables(measure_cells(args.results, wanted)))


if __name__ == "__main__":
    main()
