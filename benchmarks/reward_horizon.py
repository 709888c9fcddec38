"""After how many steps do trainings on single labels stand in the order in which 25 steps leave them? From a checkpoint the model
is trained on each label of the three agents in three ways, with batches as large as the run's, and the references' loss measured
on the way: half of every batch from the label ("beside"), all of it ("alone"), all of it for three steps and random batches
behind them ("settled").

    python -m benchmarks.reward_horizon --run RUN --data LAB/data --step 147 --truth use_147.json --out FILE

Run from the repository root; what is done is kept in --out and is not done again. The table and how to read it:
benchmarks/reward_truth.md, section F.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.group_design import given_truth
from benchmarks.kept import keeper, opened
from benchmarks.label_truth import reference_loss
from benchmarks.rank_statistics import spearman
from benchmarks.reward_usefulness import AGENTS
from benchmarks.trained_run import TrainedRun, checkpoint_parser
from mads.checkpoint import canonical
from mads.launch.processes import become_single_process
from mads.logging.environment import environment
from mads.train.engine import TrainEngine
from mads.train.reward_model import EngineRewardModel

# way -> share of the label in the batch of each step; after how many steps the loss is measured.
HALF, WHOLE, NONE = 0.5, 1.0, 0.0
WAYS = {
    "beside": ([HALF] * 12, (1, 3, 6, 12)),
    "alone": ([WHOLE] * 6, (1, 3, 6)),
    "settled": ([WHOLE] * 3 + [NONE] * 6, (4, 6, 9)),
}


def batches(run: TrainedRun, shares: list[float], seed: int, only: np.ndarray | None) -> Iterator[tuple[list, int]]:
    """(micro-batches, valid tokens) of each step, the share of the label's rows as given; the other rows are the same for all."""
    rows = run.config.train.global_batch_size
    mixed = [run.batches(len(shares), 300 + seed, rows=rows // 2), run.batches(len(shares), 400 + seed, rows=rows // 2)]
    own = [run.batches(len(shares), 500 + seed + 100 * i, only=only, rows=rows // 2) for i in range(2)]
    for share in shares:
        halves = [own[i].next() if share > 0.5 * i else mixed[i].next() for i in range(2)]
        yield [m for half in halves for m in half.micro_batches], sum(half.valid_tokens for half in halves)


def losses_along(run: TrainedRun, engine: TrainEngine, references, way: str, seed: int, only: np.ndarray | None) -> list[float]:
    """The references' loss at each of the way's places."""
    canonical.load(run.checkpoint, engine, run.topology)
    shares, places = WAYS[way]
    rate, model, losses = run.rate(engine.state.steps), EngineRewardModel(engine), []
    for step, (micro_batches, valid_tokens) in enumerate(batches(run, shares, seed, only), 1):
        engine.train_step(micro_batches, valid_tokens, rate)
        if step in places:
            losses.append(reference_loss(model, references))
    return losses


def agreement(record: dict, truth: dict[str, list[float]], seed: int) -> dict[str, dict[str, float]]:
    """way -> steps -> Spearman correlation of the gains of all labels with the truth."""
    found = {}
    for way, (_, places) in WAYS.items():
        none = np.array(record["losses"][f"{seed}/{way}/none"])
        all_labels = [record["losses"][f"{seed}/{way}/{a}/{l}"] for a in truth for l in record["labels"][a]]
        gain = none - np.array(all_labels)
        whole = np.concatenate([truth[a] for a in truth])
        found[way] = {str(place): spearman(gain[:, i], whole) for i, place in enumerate(places)}
    return found


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0])
    parser.add_argument("--truth", required=True, help="file of benchmarks.reward_usefulness for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference-examples", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data, arguments.step)
    engine = run.engine(torch.float32)
    out = Path(arguments.out)
    fixed = {"step": arguments.step, "reference_examples": arguments.reference_examples}
    record = opened(out, fixed, {"losses": {}}, parser.error)
    record["date"], record["environment"] = datetime.date.today().isoformat(), environment(1, "cpu", [])
    record["labels"] = {a: list(run.pool.labels(a)) for a in AGENTS}
    truth = given_truth(json.loads(Path(arguments.truth).read_text()), record["labels"], arguments.step)
    references = run.reference_sets(arguments.reference_examples)["audit"]
    keep = keeper(record, out)
    labels = [
        (f"{a}/{l}", np.flatnonzero(np.asarray(run.pool.codes(a)) == j))
        for a in AGENTS
        for j, l in enumerate(record["labels"][a])
    ]
    for way in WAYS:
        for name, only in [("none", None), *labels]:
            compute = lambda way=way, only=only: losses_along(run, engine, references, way, arguments.seed, only)  # noqa: E731
            keep("losses", f"{arguments.seed}/{way}/{name}", compute)
    record["agreement"] = agreement(record, truth, arguments.seed)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["agreement"], indent=1))


if __name__ == "__main__":
    main()
