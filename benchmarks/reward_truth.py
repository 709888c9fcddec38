"""Are rewards what they claim to be? Measures mads.reward on a trained model against autograd and against real optimizer steps.

    python -m benchmarks.reward_truth --run runs/mads --data data/demo --out benchmarks/reward_truth.json

Run from the repository root. The tables and how to read them: benchmarks/reward_truth.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.exact_model import ExactModel, TrueStep
from benchmarks.rank_statistics import bootstrap_interval, spearman, split_half_reliability
from benchmarks.trained_run import Study, TrainedRun
from mads.config.schema import GhostRewardConfig
from mads.eval.losses import FixedBatches
from mads.launch.processes import become_single_process
from mads.logging.environment import environment
from mads.train.reward_model import EngineRewardModel

RELATIVE_STEPS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DAMPINGS = (0.0, 0.3, 1.0)
RATE_FACTORS = (0.1, 1.0, 10.0)  # of the learning rate that the run had reached
# Size of a round of the paper and its scripts: probes, reference examples.
PAPER_PROBES, PAPER_REFERENCES = 10_000, 2_576


def log(message: str) -> None:
    print(f"{time.process_time():7.1f} s  {message}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- estimators of r(x), and their exact values


def exact_rewards(study: Study, directions: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Per probe, by per-sample backward passes in float64: <direction, grad L(x)> for every direction [P] (L the token mean),
    and under "loss" and "gradient_norm" those of L(x) itself."""
    names = list(directions)
    stacked = torch.stack([directions[name] for name in names])
    rows = []
    for sample, weight in zip(study.samples, study.weights):
        loss, gradient = study.exact.sample_gradient(sample)
        gradient /= weight
        rows.append([*(stacked @ gradient).tolist(), loss / weight, float(gradient.norm())])
    return {name: np.array(column) for name, column in zip([*names, "loss", "gradient_norm"], zip(*rows))}


def agreement(estimate: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    error = np.abs(estimate - exact)
    return {
        "pearson": float(np.corrcoef(estimate, exact)[0, 1]),
        "spearman": spearman(estimate, exact),
        "max_error_over_std": float(error.max() / exact.std()),
        "median_relative_error": float(np.median(error / np.abs(exact))),
        "max_relative_error": float((error / np.abs(exact)).max()),
    }


def curvature_ratio(study: Study, vector, relative_step: float) -> float:
    """Median over the probes of |L(+) + L(-) - 2 L(0)| / |L(+) - L(-)|: the even part of the error, which two sides cancel,
    against what is left. Well above 1, the step is so long that the odd terms of higher order may count as well."""
    model = EngineRewardModel(study.engine)
    batches = FixedBatches(study.samples, study.exact.seq_length, study.run.config.reward.rows_per_batch)
    step = relative_step * model.parameter_norm()
    sides = []
    for scale in (step, -step, 0.0):
        with model.shifted(vector, scale):
            sides.append(np.concatenate([model.sample_losses([batches.batch(i)[0]])[0].numpy() for i in range(batches.count)]))
    return float(np.median(np.abs(sides[0] + sides[1] - 2 * sides[2]) / np.abs(sides[0] - sides[1])))


def measure_estimators(study: Study) -> dict:
    """Section A: the three modes of the product against the exact dot products with the same direction."""
    run, engine = study.run, study.engine
    product = run.rewarder(engine, study.reward()).direction(0)
    truth = exact_rewards(study, {"product": study.exact.flatten(product.vector)})["product"]
    log(f"exact rewards of {len(study.samples)} probes done")
    table = {}
    for step in RELATIVE_STEPS:
        rewards, _ = run.rewarder(engine, study.reward(relative_step=step)).rewards(product, study.samples)
        even = curvature_ratio(study, product.vector, step)
        table[f"finite difference fp32, relative step {step:g}"] = agreement(rewards, truth) | {"curvature_ratio": even}
    ghost = run.rewarder(engine, study.reward(GhostRewardConfig))
    table["ghost fp32"] = agreement(ghost.rewards(product, study.samples)[0], truth)
    log("fp32 done")
    half = run.rewarder(run.engine(torch.bfloat16), study.reward(GhostRewardConfig))
    table["ghost bf16, direction of the fp32 model"] = agreement(half.rewards(product, study.samples)[0], truth)
    table["ghost bf16, direction of the bf16 model"] = agreement(half.rewards(half.direction(0), study.samples)[0], truth)
    log("bf16 done")
    return table


def estimators_of(study: Study) -> dict[str, np.ndarray]:
    """Every estimator of r(x) that section B ranks by, float64 [probes] each. The first is the product as it is."""
    run, damping = study.run, study.run.config.reward.damping
    directions = {d: run.rewarder(study.engine, study.reward(damping=d)).direction(0) for d in sorted({*DAMPINGS, damping})}
    flat = {f"damping {d:g}": study.exact.flatten(v.vector) for d, v in directions.items()}
    exact = exact_rewards(study, flat | {"plain": study.exact.reference_gradient(study.references("direction"))})
    product, _ = run.rewarder(study.engine, study.reward()).rewards(directions[damping], study.samples)
    result = {f"product (finite difference, damping {damping:g})": product}
    result |= {f"exact dot product, {name}": exact[name] for name in flat}
    result["exact dot product, plain gradient (P = I)"] = exact["plain"]
    result["cosine of plain gradients"] = exact["plain"] / exact["gradient_norm"]
    result[f"damping {damping:g}, over the norm of grad L(x)"] = exact[f"damping {damping:g}"] / exact["gradient_norm"]
    result["the sample's own loss"] = exact["loss"]
    return result


# ---------------------------------------------------------------- cost


def measure_cost(study: Study, repeats: int = 3) -> dict:
    """Section C: CPU seconds per probe, best of `repeats`, and in forward passes over the same packed probes."""
    rewarders = {
        "finite difference fp32": study.run.rewarder(study.engine, study.reward()),
        "ghost fp32": study.run.rewarder(study.engine, study.reward(GhostRewardConfig)),
    }
    model = EngineRewardModel(study.engine)
    batches = FixedBatches(study.samples, study.exact.seq_length, study.run.config.reward.rows_per_batch)
    packed = [batches.batch(i)[0] for i in range(batches.count)]
    direction = rewarders["ghost fp32"].direction(0)

    def seconds(action) -> float:
        times = []
        for _ in range(repeats):
            started = time.process_time()
            action()
            times.append(time.process_time() - started)
        return min(times)

    forward = seconds(lambda: model.sample_losses(packed))
    result = {"forward_seconds_per_probe": forward / len(study.samples)}
    for name, rewarder in rewarders.items():
        taken = seconds(lambda rewarder=rewarder: rewarder.rewards(direction, study.samples))
        result[name] = {"seconds_per_probe": taken / len(study.samples), "forward_passes": taken / forward}
    references = study.references("direction")
    taken = seconds(lambda: rewarders["ghost fp32"].direction(0))
    rows = batches.packing.rows
    result["direction"] = {"seconds": taken, "forward_passes_per_row": taken / references.rows / (forward / rows)}
    n, m = PAPER_PROBES, PAPER_REFERENCES
    result["passes_of_a_round"] = {
        "scripts, one-step evaluation N(3+M)": n * (3 + m),
        "per-sample gradients 3(N+M)": 3 * (n + m),
        "finite difference 2N + 3M": 2 * n + 3 * m,
    }
    return result


# ---------------------------------------------------------------- ground truth


def measure_truth(study: Study, batches: int, checked: int) -> dict:
    """Section B: gains of every probe in random batches, float64 [probes, batches] by form of the truth.

    gain = L_ref after the step without x - L_ref after the step with x, per unit of x's share n_x / (n_B + n_x) in the token
    mean and per unit of learning rate. To first order it is a constant times r(x) - r(B). The audit part, the other learning
    rates and the derivatives at the stepped weights are measured in the first half of the batches.
    """
    exact, references = study.exact, {part: study.references(part) for part in ("direction", "audit")}
    rate = study.run.rate(exact.adam.steps)
    at_theta = {f"{part}, linear at the weights": exact.reference_gradient(r) for part, r in references.items()}
    samples = [(exact.sample_gradient(s)[1], w) for s, w in zip(study.samples, study.weights)]
    loader = study.run.batches(batches, seed=1, without=study.positions)
    gains: dict[str, list] = {}
    record: dict = {"rate": rate, "clip_factors": [], "shares": []}
    for b in range(batches):
        batch = loader.next()
        step = TrueStep(exact, exact.batch_gradient(batch.micro_batches), batch.valid_tokens)
        record["clip_factors"].append(exact.adam.clip_factor(step.mean))
        record["shares"].append([step.share(w) for w in study.weights])
        found = {"direction, real, rate x1": step.real_gains(samples, references["direction"], rate, single=True)}
        linear = dict(at_theta)
        if b < batches // 2:
            found["audit, real, rate x1"] = step.real_gains(samples, references["audit"], rate, single=True)
            found["direction, real, rate x10"] = step.real_gains(samples, references["direction"], 10 * rate, single=True)
            for factor in RATE_FACTORS:
                stepped = exact.step(step.mean, factor * rate)
                name = f"direction, linear after the step, rate x{factor:g}"
                linear[name] = exact.reference_gradient(references["direction"], stepped)
        columns = [step.linear_gains(gradient, weight, linear) for gradient, weight in samples]
        found |= {name: np.array([c[name] for c in columns]) for name in columns[0]}
        for name, column in found.items():
            gains.setdefault(name, []).append(column)
        if b == 0:
            chosen = np.linspace(0, len(samples) - 1, checked).astype(int)
            double = step.real_gains([samples[i] for i in chosen], references["direction"], rate, single=False)
            record["float32_evaluation"] = agreement(found["direction, real, rate x1"][chosen], double)
        log(f"batch {b} done")
    return record | {"gains": {name: np.stack(columns, 1) for name, columns in gains.items()}}


def rank_estimators(study: Study, estimates: dict[str, np.ndarray], truth: dict) -> dict:
    """Spearman of every estimator with every form of the truth (mean over the batches), and the truth's reliability."""
    own = next(iter(estimates.values()))
    table: dict = {}
    for name, gains in truth["gains"].items():
        reliability = split_half_reliability(gains)
        ceiling = math.sqrt(max(0.0, reliability))
        rows = {}
        for key, estimate in estimates.items():
            value = spearman(estimate, gains.mean(1))
            rows[key] = {"spearman": value, "of_ceiling": value / ceiling if ceiling else None}
            if ", real," in name:
                rows[key]["interval"] = bootstrap_interval(estimate, gains.mean(1), draws=1000)
        table[name] = {"reliability": reliability, "ceiling": ceiling, "estimators": rows}
    name = "direction, real, rate x1"
    main, shares = truth["gains"][name], np.array(truth["shares"]).T
    within = [spearman(own[study.domains == d], main.mean(1)[study.domains == d]) for d in np.unique(study.domains)]
    table[name]["within_domain_mean"] = float(np.mean(within))
    # Not per unit of share: what x displaces is the batch, whose reward the probes' weighted mean stands for.
    absolute = (main * shares).mean(1)
    table[name]["absolute_gain_against_weight_times_reward"] = spearman(
        shares.mean(1) * (own - np.average(own, weights=study.weights)), absolute
    )
    return table


# ---------------------------------------------------------------- command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a run of `mads train`; its newest checkpoint is studied")
    parser.add_argument("--data", required=True, help="the prepared directory that it was trained on")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--probes", type=int, default=64, help="probes of the comparison with autograd, and of the cost")
    parser.add_argument("--stepped-probes", type=int, default=48, help="probes of the comparison with real steps")
    parser.add_argument("--batches", type=int, default=4, help="random batches per stepped probe, a multiple of 4")
    parser.add_argument("--checked", type=int, default=8, help="gains that are evaluated in float64 too")
    parser.add_argument("--reference-examples", type=int, default=32, help="per task and part")
    arguments = parser.parse_args()
    if arguments.batches < 4 or arguments.batches % 4:
        parser.error(f"--batches {arguments.batches} is not a multiple of 4: its half is halved again for the reliability")

    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data)
    run.config.reward.reference_examples = arguments.reference_examples
    engine = run.engine(torch.float32)
    exact = ExactModel(engine, run.config)
    study = Study.draw(run, engine, exact, arguments.probes)
    record = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(1, "cpu", ["benchmarks/reward_truth.py"]),
        "arguments": {k: v for k, v in vars(arguments).items() if k not in ("run", "data", "out")},
        "parameters": exact.parameter_count,
        "checkpoint_steps": exact.adam.steps,
        "estimators": measure_estimators(study),
        "cost": measure_cost(study),
    }
    stepped = Study.draw(run, engine, exact, arguments.stepped_probes)
    estimates = estimators_of(stepped)
    truth = measure_truth(stepped, arguments.batches, arguments.checked)
    record["truth"] = rank_estimators(stepped, estimates, truth)
    record |= {key: truth[key] for key in ("rate", "clip_factors", "float32_evaluation")}
    record["raw"] = {
        "domain": [run.pool.labels("domain")[d] for d in stepped.domains],
        "targets": stepped.weights.tolist(),
        "estimates": {k: v.tolist() for k, v in estimates.items()},
        "gains": {k: v.mean(1).tolist() for k, v in truth["gains"].items()},
    }
    record["cpu_seconds"] = time.process_time()
    Path(arguments.out).write_text(json.dumps(rounded(record), separators=(",", ":")) + "\n")


def rounded(value, digits: int = 6):
    """Floats to `digits` significant digits, all the way down."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
