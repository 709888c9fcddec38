"""From the cells' results to the numbers that the page and the table show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mads.compare.statistics import Estimate, Reach, ReachOverSeeds, estimate, holm, paired, reach_over_seeds, value_at
from mads.data.schema import DataError


@dataclass(frozen=True)
class Metric:
    """One measured number of an end: smaller is better for all of them.

    path: keys below the point; unit: for readers
    """

    name: str
    path: tuple[str, ...]
    unit: str

    def of(self, point: Mapping[str, Any]) -> float | None:
        """The value at an end, if it was measured."""
        value: Any = point
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None else float(value)


@dataclass(frozen=True)
class Roles:
    """Which strategies are control, treatment and its primary opponent; `apart` are tasks outside of the mean."""

    control: str
    treatment: str | None = None
    primary: str | None = None
    apart: tuple[str, ...] = ()


class Comparison:
    """All results of one comparison.

    cells: strategy -> seed -> result (mads.compare.collect)
    strategies: the control first, the treatment second, then the others as they come
    """

    def __init__(self, results: Sequence[dict[str, Any]], roles: Roles, missing: Mapping[str, str] | None = None):
        self.roles, self.missing = roles, dict(missing or {})
        self.cells: dict[str, dict[int, dict[str, Any]]] = {}
        for result in results:
            self.cells.setdefault(result["strategy"], {})[result["seed"]] = result
        first = [name for name in (roles.control, roles.treatment, roles.primary) if name in self.cells]
        self.strategies = list(dict.fromkeys([*first, *self.cells]))
        self.seeds = sorted({seed for own in self.cells.values() for seed in own})

    @property
    def one(self) -> dict[str, Any]:
        """Any result, for what they all share."""
        return next(iter(self.cells[self.strategies[0]].values()))

    def points(self) -> Iterator[dict[str, Any]]:
        """Every end of every cell."""
        for own in self.cells.values():
            for result in own.values():
                yield from result["points"]

    def metrics(self) -> list[Metric]:
        """The headline metric first: the evaluation's mean if there is one, else the references' mean; then all others."""
        tasks = list(dict.fromkeys(t for p in self.points() for t in (p["evaluation"] or {}).get("tasks", {})))
        found = []
        if tasks:
            found.append(Metric("evaluation mean", ("evaluation", "mean_bits_per_byte"), "bits per byte"))
            found += [
                Metric(t + _apart(t, self.roles), ("evaluation", "tasks", t, "bits_per_byte"), "bits per byte") for t in tasks
            ]
        for group, word in (("references", "reference"), ("heldout", "held-out")):
            names = list(dict.fromkeys(n for p in self.points() for n in p[group] or {}))
            if names:
                found.append(Metric(f"{word} mean", (f"{group}_mean",), "nats per token"))
                found += [Metric(f"{word}: {n}", (group, n), "nats per token") for n in names]
        further = dict.fromkeys((a, n) for p in self.points() for a, own in (p.get("heldout_by") or {}).items() for n in own)
        found += [Metric(f"held-out, {a} {n}", ("heldout_by", a, n), "nats per token") for a, n in further]
        return found

    def final(self, strategy: str, metric: Metric) -> dict[int, float]:
        """Seed -> value at the end of all tokens."""
        values = {seed: metric.of(r["points"][-1]) for seed, r in self.cells.get(strategy, {}).items()}
        return {seed: v for seed, v in values.items() if v is not None}

    def curves(self, strategy: str, metric: Metric, compute: bool = False) -> dict[int, list[tuple[float, float]]]:
        """Seed -> (share of the control's tokens, value) of the ends; with `compute`, of its FLOPs, selection's included."""
        curves = {}
        for seed, result in self.cells.get(strategy, {}).items():
            whole = self.cells.get(self.roles.control, {}).get(seed)
            if whole is None:
                continue
            end = whole["points"][-1]
            scale = flops(end) if compute else end["steps"]
            pairs = [((flops(p) if compute else p["steps"]) / scale, metric.of(p)) for p in result["points"]]
            curves[seed] = [(x, y) for x, y in pairs if y is not None]
        return curves

    def mean(self, strategy: str, metric: Metric) -> Estimate | None:
        """The strategy's own mean over seeds at the end of all tokens."""
        return estimate(list(self.final(strategy, metric).values()))

    def against(self, strategy: str, opponent: str, metric: Metric) -> Estimate | None:
        """strategy - opponent at equal tokens, paired by seed; below 0 the strategy is better."""
        return paired(self.final(strategy, metric), self.final(opponent, metric))

    def at_equal_compute(self, strategy: str, metric: Metric) -> Estimate | None:
        """strategy - control where the strategy has spent the control's FLOPs: between its ends, never beyond them."""
        curves = self.curves(strategy, metric, compute=True)
        values = {seed: value_at(curve, 1.0) for seed, curve in curves.items()}
        return paired({s: v for s, v in values.items() if v is not None}, self.final(self.roles.control, metric))

    def reached(self, strategy: str, metric: Metric, compute: bool = False) -> ReachOverSeeds | None:
        """Where the strategy's cooled ends come down to the control's final value; None with fewer than two ends."""
        curves = {s: c for s, c in self.curves(strategy, metric, compute).items() if len(c) > 1}
        return reach_over_seeds(curves, self.final(self.roles.control, metric))

    def treatment_table(self, metric: Metric) -> list[tuple[str, Estimate, float | None]]:
        """(opponent, treatment - opponent, p): the primary opponent's p as it is, those of the others Holm-corrected."""
        treatment = self.roles.treatment
        if treatment is None or treatment not in self.cells:
            return []
        found = {o: self.against(treatment, o, metric) for o in self.strategies if o != treatment}
        found = {o: e for o, e in found.items() if e is not None}
        others = {o: e.p for o, e in found.items() if e.p is not None and o != self.roles.primary}
        corrected = holm(others)
        first = [o for o in (self.roles.primary,) if o in found]
        p = {o: e.p if o == self.roles.primary else corrected.get(o) for o, e in found.items()}
        return [(o, found[o], p[o]) for o in dict.fromkeys([*first, *found])]

    def cost(self, strategy: str) -> dict[str, Estimate | None]:
        """Means over seeds of what the whole run took: seconds, CPU seconds, shares of selection."""
        ends = [r["points"][-1] for r in self.cells[strategy].values()]
        cells = list(self.cells[strategy].values())
        return {
            "seconds": estimate([e["seconds"] for e in ends]),
            "cpu_seconds": estimate([sum(s["cpu_seconds"] for s in c["stages"].values()) for c in cells]),
            "selection_time": estimate([e["selection_seconds"] / e["seconds"] for e in ends if e["seconds"]]),
            "selection_flops": estimate([e["selection_flops"] / e["training_flops"] for e in ends if e["training_flops"]]),
        }


def _apart(task: str, roles: Roles) -> str:
    return " (apart)" if task in roles.apart else ""


def flops(point: Mapping[str, Any]) -> float:
    """All that an end took: training and selection."""
    return point["training_flops"] + point["selection_flops"]


def read_results(folder: Path, only: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The results below a folder, by strategy and seed.

    Raises:
        DataError: a file is no result of a cell.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            known = value["strategy"], value["seed"], value["points"][-1]["steps"], value["format"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{path} is not the result of a cell of mads compare ({error!r}); remove it") from error
        if known[3] != 1:
            raise DataError(f"{path} has format {known[3]}, this version reads format 1")
        if only is None or value["strategy"] in only:
            results.append(value)
    return results


def reach_text(found: ReachOverSeeds | None) -> str:
    """Tokens to reach, for a table cell."""
    if found is None:
        return "–"
    n = len(found.by_seed)
    if found.place is not None:
        return percent(found.place)
    never, before = found.count("never"), found.count("before")
    if never == n:
        return "not reached"
    if before == n:
        bound = max(r.place for r in found.by_seed.values())
        return f"at most {bound:.0%}"
    words = ", ".join(_seed_text(r) for r in found.by_seed.values())
    return f"{n - never} of {n} seeds: {words}"


def _seed_text(found: Reach) -> str:
    return {"at": f"{found.place or 0:.0%}", "before": f"≤ {found.place or 0:.0%}", "never": "not"}[found.kind]


def percent(value: Estimate) -> str:
    """A share with its interval."""
    return f"{value.mean:.0%}" if value.half is None else f"{value.mean:.0%} ± {value.half:.0%}"


def number(value: Estimate | None, digits: int = 4, sign: bool = False) -> str:
    """A mean with the half-width of its 95% interval, if there is one."""
    if value is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    mean = format(value.mean, form).replace("-", "−")
    return mean if value.half is None else f"{mean} ± {value.half:.{digits}f}"


def p_text(p: float | None) -> str:
    """A p value for reading."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
