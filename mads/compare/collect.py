"""The result of a cell: one small JSON file, made from its run folders, that the page and the tables are drawn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mads.compare.plan import Cell
from mads.config.compose import compose
from mads.console.record import DecisionRecord
from mads.data.pool import Pool
from mads.logging.decisions import decision_path, read_decision
from mads.logging.metrics import METRICS, read_lines
from mads.model.shape import flops_per_token
from mads.report.read import SELECTION_PHASES, Run, read_run

FORMAT = 1
MIX_LABELS = 64  # an attribute with more labels is no mix that a reader can take in
DIGITS = 6


def ended_at(run: Path) -> int | None:
    """The step at which a run ended; None while it has not."""
    path = run / METRICS
    if not path.is_file():
        return None
    ends = [line["steps"] for line in read_lines(path) if line.get("kind") == "end"]
    return ends[-1] if ends else None


def collect(cell: Cell, work: Path, plan: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """The result of a cell whose stages are all done.

    Returns a JSON value. `curve` is the trunk's, by tokens; `points` are the ends that were evaluated, by fraction, each with all
    that it took from step 0; losses are nats per token, FLOPs as mads.model.shape.flops_per_token counts them.
    """
    composed = compose([*cell.trunk, "run_dir=unused"])
    per_step = flops_per_token(composed.model, composed.data.seq_length) * cell.tokens_per_step
    trunk = read_run(work / "trunk")
    runs = [(b.fraction, read_run(work / f"branch-{b.fraction:.2f}"), b.start) for b in cell.branches]
    points = [
        _point(fraction, run, per_step, work, _before(trunk, start), taken, branched=bool(runs))
        for fraction, run, start in runs or [(1.0, trunk, 0)]
    ]
    longest = runs[-1][1] if runs else trunk
    decided = [*_decisions(trunk, runs[-1][2]), *_decisions(longest)] if runs else _decisions(trunk)
    environment = trunk.environment or {}
    return {
        "format": FORMAT,
        "strategy": cell.strategy,
        "seed": cell.seed,
        "digest": cell.digest,
        "settings": cell.settings,
        "git": environment.get("git"),
        "packages": environment.get("packages"),
        "python": environment.get("python"),
        "system": environment.get("system"),
        "device": environment.get("device"),
        "steps": cell.steps,
        "tokens_per_step": cell.tokens_per_step,
        "tokens": points[-1]["tokens"],
        "stages": taken,
        "curve": _curve(trunk),
        "points": points,
        **_mix(Pool.open(composed.data.dir), decided, plan["destroyed"]),
        "rounds": _rounds(decided),
    }


def _decisions(run: Run, before: int | None = None) -> list[tuple[Path, DecisionRecord]]:
    """(run folder, decision) of those before a step."""
    return [(run.folder, d) for d in run.decisions if before is None or d.step < before]


def _before(trunk: Run, start: int) -> dict[str, Any]:
    """What of the trunk lies before the step at which a branch leaves it."""
    return {
        "seconds": sum(v["seconds"] for v in trunk.train if v["step"] <= start),
        "phases": [v for v in trunk.phases if v["step"] <= start],
        "decisions": [d for d in trunk.decisions if d.step < start],
    }


def _point(fraction: float, run: Run, per_step: float, work: Path, before: dict, taken: dict, branched: bool) -> dict[str, Any]:
    phases = [*before["phases"], *run.phases] if branched else run.phases
    decisions = [*before["decisions"], *run.decisions] if branched else run.decisions
    seconds = {name: sum(v["seconds"] for v in phases if v["name"] == name) for name in ("train", *SELECTION_PHASES)}
    rewards = sum(seconds[name] for name in SELECTION_PHASES)
    training = run.steps * per_step
    counted = [d.direction["flops"] for d in decisions if "flops" in d.direction]
    # Without a count, seconds at the speed of training: the dearest way to count, for scoring and deciding are in it.
    flops = float(sum(counted)) if counted else training * rewards / seconds["train"] if seconds["train"] else 0.0
    path = work / f"evaluation-{fraction:.2f}.json"
    return {
        "fraction": fraction,
        "steps": run.steps,
        "tokens": run.tokens,
        "seconds": round((before["seconds"] if branched else 0.0) + run.wall_seconds, 2),
        "cpu_seconds": taken.get(f"branch {fraction:g}" if branched else "trunk", {}).get("cpu_seconds"),
        "selection_seconds": round(rewards, 2),
        "training_flops": training,
        "selection_flops": flops,
        "selection_flops_counted": bool(counted),
        **{key: _last(run, key) for key in ("references", "references_mean", "heldout", "heldout_mean", "heldout_by")},
        "evaluation": json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None,
    }


def _last(run: Run, key: str) -> Any:
    return _rounded(run.evals[-1].get(key)) if run.evals else None


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def _curve(run: Run) -> dict[str, Any]:
    """Held-out and reference losses of the trunk, at its evaluations."""
    names = {key: run.eval_names(key) for key in ("references", "heldout")}
    return {
        "tokens": [line["tokens"] for line in run.evals],
        **{
            key: {name: [_rounded((line.get(key) or {}).get(name)) for line in run.evals] for name in own}
            for key, own in names.items()
        },
        **{f"{key}_mean": [_rounded(line.get(f"{key}_mean")) for line in run.evals] for key in names},
    }


def _mix(pool: Pool, decided: list[tuple[Path, DecisionRecord]], destroyed: dict[str, list[str]]) -> dict[str, Any]:
    """Shares of the chosen tokens by attribute and label, a value a round and over all rounds, beside the pool's; from the ids of
    the decisions, so that every attribute is seen, also those that no agent looks at."""
    lengths = np.asarray(pool.lengths[:], dtype=np.int64)
    chosen = [
        pool.positions_of(read_decision(folder, d.round)) for folder, d in decided if decision_path(folder, d.round).is_file()
    ]
    names = [a for a in pool.attributes if len(pool.labels(a)) <= MIX_LABELS or a in destroyed]
    mix, bad = {}, {}
    for name in names:
        codes, labels = np.asarray(pool.codes(name)[:]), pool.labels(name)
        whole = np.bincount(codes, lengths, len(labels))
        rounds = np.array([np.bincount(codes[p], lengths[p], len(labels)) for p in chosen]).reshape(len(chosen), len(labels))
        if name in destroyed:
            own = [i for i, label in enumerate(labels) if label in destroyed[name]]
            bad[name] = {
                "pool": _rounded(float(whole[own].sum() / whole.sum())),
                "rounds": _rounded([float(r[own].sum() / max(r.sum(), 1)) for r in rounds]),
                "all": _rounded(float(rounds[:, own].sum() / max(rounds.sum(), 1))),
            }
        if len(labels) <= MIX_LABELS:
            mix[name] = {
                label: {
                    "pool": _rounded(float(whole[i] / whole.sum())),
                    "rounds": _rounded([float(r[i] / max(r.sum(), 1)) for r in rounds]),
                    "all": _rounded(float(rounds[:, i].sum() / max(rounds.sum(), 1))),
                    "epochs": _rounded(float(rounds[:, i].sum() / whole[i])) if whole[i] else None,
                }
                for i, label in enumerate(labels)
            }
    return {"mix": mix, "destroyed": bad}


def _rounds(decided: list[tuple[Path, DecisionRecord]]) -> list[dict[str, Any]]:
    """What each decision was: its step, theta, every label's weight, samples and how many of them were chosen before."""
    return [
        {
            "round": d.round,
            "step": d.step,
            "theta": _rounded(d.theta),
            "weights": {agent: {r.label: _rounded(r.weight) for r in rows} for agent, rows in d.labels.items()},
            "chosen": d.chosen,
            "reused": d.reused,
            "seconds": _rounded(d.seconds),
        }
        for _, d in decided
    ]
