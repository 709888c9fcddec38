"""What each part of a selection costs by itself, and together at the paper's setting. Page: selection_cost.md.

    OMP_NUM_THREADS=1 python -m benchmarks.selection_cost --results FILE.jsonl [--sizes 1e5 1e6 1e7] [--only pool rewards chosen]

Cells that the file holds are not measured again. Pools are synthetic and lie in memory: three label columns (5, 7, 13 labels),
one column of values, lengths 16 to 1,024; 1.44% of the tokens are chosen, as in the paper. Two gloo processes decide, with the
real console. CPU seconds are those of the busier one. Rewards are measured on a real engine beside its own training steps, so
that they come out in training tokens. Tables are printed as Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.cells import line, measure_cells, on_ranks
from mads.agents import LabelAgent
from mads.agents.continuous import ContinuousAgent
from mads.agents.influence import InfluenceAgent
from mads.agents.joint import JointCellAgent
from mads.config.schema import MadsSelectionConfig, PaperSelectionConfig
from mads.console.choose import lay_out, own_slice
from mads.console.console import Console
from mads.console.exchange import broadcast_decision
from mads.console.order import Draw
from mads.console.strategy import build_strategy
from mads.data.columns import IdColumn, ShardedColumn
from mads.data.loader import Loader
from mads.data.pool import Pool
from mads.data.schema import AttributeSchema
from mads.logging.decisions import write_decision
from mads.reward.probes import RoundRewards
from mads.topology import Grid, Topology

LABELS = {"quality": 5, "domain": 7, "topic": 13}
LENGTH, SHARE, PIECE = 1024, 8.5 / 590, 1 << 18
RANKS, REPEATS = 2, 3
KINDS = ("paper", "mads", "mads + curve", "joint", "mates")
# The paper's main run (METHOD and its section 4): 7,500 steps of 4 x 2^20 tokens in 14 hours on 32 GPUs, a decision each 1,500.
PAPER = SimpleNamespace(parameters=1_345_423_360, ranks=32, steps=1500, tokens=1500 * 4 * 2**20, seconds=14 * 3600 / 5)
PAPER_CHOSEN, PAPER_PROBES, PAPER_REFERENCES, REFERENCE_TOKENS = 8.5e6, 30_000, 1_500, 150
H100_FLOPS = 0.40 * 989e12  # of one GPU at the utilisation that LLM-Foundry reports for this size


# ---------------------------------------------------------------- the pool


class SyntheticPool(Pool):
    """A pool of `count` samples in memory, the same on every rank: mads.data.pool.Pool but for its files."""

    def __init__(self, count: int, shards: int = 4):
        rng = np.random.default_rng(0)
        cuts = [count * i // shards for i in range(1, shards)]
        column = lambda values: ShardedColumn(np.split(values, cuts), values.dtype)  # noqa: E731
        self.lengths = column(rng.integers(16, LENGTH + 1, count, dtype=np.int32))
        self.shards = tuple(np.diff([0, *cuts, count]).tolist())
        self.ids = IdColumn(self.shards)
        draw = {name: rng.choice(k, count, p=rng.dirichlet(np.full(k, 2.0))).astype(np.uint16) for name, k in LABELS.items()}
        self._codes = {name: column(codes) for name, codes in draw.items()}
        self._values = {"quality": column(rng.standard_normal(count, dtype=np.float32))}
        self._schemas = {name: AttributeSchema(name, tuple(f"{name}{j}" for j in range(k))) for name, k in LABELS.items()}
        self.manifest = SimpleNamespace(seq_length=LENGTH)
        self.token_shards = SimpleNamespace(will_need=lambda positions: None)
        self.total_tokens = int(self.lengths[:].sum(dtype=np.int64))


def console_of(kind: str, exchange: str, pool: Pool, topology: Topology, probes: int) -> Console:
    """A console whose next round is scored."""
    labels, every = [LabelAgent(name) for name in LABELS], list(LABELS)
    agents = {
        "mads + curve": [*labels, ContinuousAgent("quality", name="curve")],
        "joint": [JointCellAgent(every)],
        "mates": [InfluenceAgent(every, values=["quality"])],
    }.get(kind, labels)
    if kind == "paper":
        config = PaperSelectionConfig(name="paper", probes_per_agent=probes // 3, exchange=exchange)
    else:
        config = MadsSelectionConfig(name="mads", probes=probes, warmup_rounds=0, exchange=exchange)
    console = Console(topology, pool, agents, build_strategy(config), seed=0)
    console.round = 1
    return console


def clocked(run: Callable) -> tuple[object, float, float]:
    """(what it returns, CPU seconds of this process, wall seconds)."""
    start, busy = time.perf_counter(), time.process_time()
    result = run()
    return result, time.process_time() - busy, time.perf_counter() - start


def scoring_seconds(console: Console, pool: Pool, uses: np.ndarray, bounds: tuple[int, int]) -> float | None:
    """CPU seconds of S over this rank's slice; None where the decision needs none."""
    recipe = console.strategy.recipe(True, console.agents)
    parts = recipe, console.strategy.limits, Draw(0, 1), 1, pool, console.agents, console.theta, uses, bounds
    scores = lay_out(*parts).scores
    if scores is None:
        return None
    pieces = [slice(a, min(a + PIECE, len(uses))) for a in range(0, len(uses), PIECE)]
    return clocked(lambda: [scores.checked_total(where) for where in pieces])[1]


def decide_rounds(size: int, probes: int, gather_up_to: float) -> dict:
    """One rank of a pool's cell: by kind and exchange, CPU and wall seconds of each part of each round."""
    topology, pool, result = Topology(Grid(dp=RANKS)), SyntheticPool(size), {}
    bounds = own_slice(pool, topology)
    uses, budget = np.zeros(bounds[1] - bounds[0], np.uint16), int(pool.total_tokens * SHARE)
    for kind in KINDS:
        consoles = {}
        for exchange in ("threshold", "gather") if size <= gather_up_to else ("threshold",):
            consoles[exchange], *bound = clocked(lambda k=kind, e=exchange: console_of(k, e, pool, topology, probes))
            result[f"{kind}, {exchange}"] = {
                "bind": [bound],
                "scoring": [],
                "probes": [],
                "update": [],
                "decision": [],
                "all": [],
            }
        for round_ in range(REPEATS):
            for exchange, console in consoles.items():
                seconds = result[f"{kind}, {exchange}"]
                drawn, *spent = clocked(console.draw_probes)
                seconds["probes"].append(spent)
                rewards = np.random.default_rng(round_).standard_normal(len(drawn.ids))
                measured = RoundRewards(drawn, rewards, np.full(len(rewards), 500))
                (ids, record), *spent = clocked(lambda c=console, m=measured: c.decide(m, uses, budget, 0, 0))
                seconds["all"].append(spent)
                scored = scoring_seconds(console, pool, uses, bounds)
                seconds["scoring"] += [] if scored is None else [[scored, scored]]
                for part in ("update", "decision") if record else ():
                    seconds[part].append([record.seconds[part]] * 2)
                result[f"{kind}, {exchange}"]["chosen"] = len(ids)
        ids = {exchange: console.pending for exchange, console in consoles.items()}
        if len(ids) == 2 and not np.array_equal(*ids.values()):
            raise AssertionError(f"{kind}: the two exchanges decided differently")
    return result


def pool_cell(size: int, probes: int, gather_up_to: float) -> dict:
    """Of one size: by kind and exchange, per part (CPU seconds of the busier rank, wall seconds), medians of the rounds."""
    by_rank, result = on_ranks(RANKS, decide_rounds, size, probes, gather_up_to), {}
    for way, parts in by_rank[0].items():
        result[way] = {"chosen": parts["chosen"]}
        for part in ("bind", "probes", "update", "scoring", "decision", "all"):
            spent = [np.median(rank[way][part], axis=0) for rank in by_rank if rank[way][part]]
            if spent:
                result[way][part] = np.max(spent, axis=0).round(6).tolist()
    return result


# ---------------------------------------------------------------- what grows with the number of chosen samples


def chosen_rounds(counts: list[int], folder: str) -> dict:
    """One rank: CPU and wall seconds of what is done with so many ids."""
    topology, pool = Topology(Grid(dp=RANKS)), SyntheticPool(2 * max(counts))
    loader = Loader(pool, LENGTH, 8, 4, topology.coordinate("dp"), RANKS)
    result = {}
    for count in counts:
        drawn = np.random.default_rng(count).permutation(len(pool))[:count]
        ids, parts = pool.ids[drawn], {"broadcast and verify": [], "loader begins": [], "file": []}
        for round_ in range(REPEATS):
            send = ids if topology.rank == 0 else None
            got, *spent = clocked(lambda r=round_, s=send: broadcast_decision(r, s, topology))
            parts["broadcast and verify"].append(spent)
            parts["loader begins"].append(clocked(lambda r=round_, g=got: loader.begin_round(r, g))[1:])
            if topology.rank == 0:
                parts["file"].append(clocked(lambda r=round_, g=got: write_decision(folder, r, g))[1:])
        result[str(count)] = parts
    return result


def chosen_cell(counts: list[int]) -> dict:
    """Count -> part -> (CPU seconds of the busier rank, wall seconds)."""
    with tempfile.TemporaryDirectory() as folder:
        by_rank = on_ranks(RANKS, chosen_rounds, counts, folder)
    return {
        count: {
            part: np.max([np.median(rank[count][part], axis=0) for rank in by_rank if rank[count][part]], axis=0).tolist()
            for part in parts
        }
        for count, parts in by_rank[0].items()
    }


# ---------------------------------------------------------------- laws and the paper's setting


def per_sample(pool_cells: dict[int, dict], way: str, part: str) -> tuple[float, float, float]:
    """`benchmarks.cells.line` of CPU seconds against the samples of a rank's slice."""
    points = [(size / RANKS, cell[way][part][0]) for size, cell in sorted(pool_cells.items()) if part in cell.get(way, {})]
    return line(*zip(*points))


def paper_rewards(excess: dict[str, float]) -> dict[str, float]:
    """Reward -> training tokens a round at the paper's setting: what its FLOPs come to, times what seconds were over FLOPs in the
    measurement. Probes have LENGTH tokens at most: an upper bound."""
    references, probes = PAPER_REFERENCES * REFERENCE_TOKENS, PAPER_PROBES * LENGTH
    groups = sum(LABELS.values()) + 2
    group_step = 8 * LENGTH  # 8 rows
    flops = {
        "finite_difference": references + probes * 2 / 3,
        "ghost": references + probes,
        "displacement": 8 * 8 * LENGTH + probes * 2 / 3,
        "group": groups * 3 * group_step + (groups + 1) * 24 * REFERENCE_TOKENS / 3,
    }
    return {kind: tokens * excess.get(kind, 1.0) for kind, tokens in flops.items()}


def shares(pool_samples: float, unit: dict[str, float], reward_tokens: float, round_seconds: float) -> dict[str, float]:
    """Part -> share of a round's wall time at the paper's setting.

    Args:
        unit: "probes", "decision" (scoring included): CPU seconds per sample of a rank's slice; "chosen": per chosen sample
        reward_tokens: in training tokens; round_seconds: that training takes
    """
    part = pool_samples / PAPER.ranks
    return {
        "rewards": reward_tokens / PAPER.tokens,
        "drawing probes": unit["probes"] * part / round_seconds,
        "scoring, exchange, decision": unit["decision"] * part / round_seconds,
        "sending and taking up the ids": unit["chosen"] * PAPER_CHOSEN / round_seconds,
    }


def h100_seconds(gpus: int = PAPER.ranks) -> float:
    """Of a round of the paper's run, by 6 N D."""
    return 6 * PAPER.parameters * PAPER.tokens / (gpus * H100_FLOPS)


def tables(found: dict) -> str:
    """Markdown of what was measured."""
    pools = {int(name.split("/")[1]): cell for name, cell in found.items() if name.startswith("pool/")}
    out = ["| selection, exchange | samples | drawing probes | learning | scoring | decision, wall | all of a round | chosen |"]
    out.append("|---|---|---|---|---|---|---|---|")
    ms = lambda cell, part, which=0: f"{1e3 * cell[part][which]:,.1f}" if part in cell else "-"  # noqa: E731
    for way in next(iter(pools.values()), {}):
        for size, cell in sorted(pools.items()):
            if way in cell:
                c, both = cell[way], cell[way]["probes"][0] + cell[way]["all"][0]
                row = [
                    way,
                    f"{size:,}",
                    ms(c, "probes"),
                    ms(c, "update"),
                    ms(c, "scoring"),
                    ms(c, "decision", 1),
                    f"{1e3 * both:,.1f}",
                ]
                out.append(f"| {' | '.join(row)} | {c['chosen']:,} |")
    units = {}
    if len(pools) > 1:
        out += [
            "",
            "| selection, threshold | drawing probes, ns a sample | scoring | learning, scoring, decision, record |",
            "|---|---|---|---|",
        ]
        for kind in KINDS:
            way, row = f"{kind}, threshold", []
            for part in ("probes", "scoring", "all"):
                if part in pools[min(pools)][way]:
                    a, b, worst = per_sample(pools, way, part)
                    units.setdefault(kind, {})["decision" if part == "all" else part] = b
                    row.append(f"{1e9 * b:.1f} (+ {1e3 * a:.1f} ms; within {worst:.0%})")
                else:
                    row.append("-")
            out.append(f"| {kind} | {' | '.join(row)} |")
    if "chosen" in found:
        out += ["", "| chosen | broadcast and verify | loader begins | file |", "|---|---|---|---|"]
        for count, parts in found["chosen"].items():
            out.append(
                f"| {int(count):,} | " + " | ".join(f"{1e3 * cpu:.1f} ({1e3 * wall:.1f})" for cpu, wall in parts.values()) + " |"
            )
    if "rewards" in found:
        out += ["", reward_table(found["rewards"])]
    if units and {"chosen", "rewards"} <= set(found):
        out += ["", paper_table(found, units)]
    return "\n".join(out)


def reward_table(cell: dict) -> str:
    out = [
        "| reward | probes | seconds | in training tokens | by FLOPs | ratio | CPU ms a probe |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in cell["rows"]:
        row = SimpleNamespace(**row)
        tokens = row.seconds / cell["seconds_per_token"]
        out.append(
            f"| {row.kind} | {row.probes} | {row.seconds:.2f} | {tokens:,.0f} | {row.flop_tokens:,.0f} | "
            f"{tokens / row.flop_tokens:.2f} | {1e3 * row.seconds / row.probes:.1f} |"
        )
    return "\n".join(out)


def excess_of(cell: dict) -> dict[str, float]:
    """Reward -> seconds over what its FLOPs say, of its largest measurement."""
    largest = {row["kind"]: row for row in sorted(cell["rows"], key=lambda row: row["probes"])}
    return {kind: row["seconds"] / cell["seconds_per_token"] / row["flop_tokens"] for kind, row in largest.items()}


def paper_table(found: dict, units: dict) -> str:
    chosen = found["chosen"]
    counts = [int(count) for count in chosen]
    each = line(counts, [sum(cpu for cpu, _ in parts.values()) for parts in chosen.values()])[1]
    rewards = paper_rewards(excess_of(found["rewards"]))
    out = ["| selection, reward | GPUs | pool | rewards | drawing probes | scoring, exchange, decision | ids | together |"]
    out.append("|---|---|---|---|---|---|---|---|")
    for kind, reward in (("paper", "ghost"), ("mads", "group"), ("mads + curve", "group"), ("mates", "ghost")):
        for gpus, seconds in (("A800", PAPER.seconds), ("H100", h100_seconds())):
            for samples in (1e8, 6e8):
                unit = {"probes": units[kind]["probes"], "decision": units[kind]["decision"], "chosen": each}
                part = shares(samples, unit, rewards[reward], seconds)
                row = " | ".join(f"{value:.4%}" for value in part.values())
                out.append(f"| {kind}, {reward} | {gpus} | {samples:.0e} | {row} | {sum(part.values()):.3%} |")
    return "\n".join(out)


def main() -> None:
    """Measure what the file lacks, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one a cell")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--probes", type=int, default=3000)
    parser.add_argument("--gather-up-to", type=float, default=1e6)
    parser.add_argument("--chosen", type=float, nargs="+", default=[1e4, 1e5, 1e6])
    parser.add_argument("--only", nargs="+", default=["pool", "chosen", "rewards"])
    args = parser.parse_args()
    cells: list[tuple[str, Callable]] = []
    if "pool" in args.only:
        for size in args.sizes:
            measure = lambda size=int(size): pool_cell(size, args.probes, args.gather_up_to)  # noqa: E731
            cells.append((f"pool/{int(size)}", measure))
    if "chosen" in args.only:
        cells.append(("chosen", lambda: chosen_cell([int(count) for count in args.chosen])))
    if "rewards" in args.only:
        from benchmarks.reward_seconds import reward_cell

        cells.append(("rewards", reward_cell))
    print("\n" + tables(measure_cells(args.results, cells)))


if __name__ == "__main__":
    main()
