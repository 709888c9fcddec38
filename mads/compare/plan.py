"""Which runs a comparison consists of: cells, the steps of their branches, and what determines their results.

A cell is one strategy with one seed. Its *trunk* trains at a constant rate; each *branch* leaves the trunk at a checkpoint, cools
down, and is evaluated. A branch at the share f of N steps ends at step n = round(f N) and decays over the last round(cooldown n)
of them, as schedule=wsd does; so its tokens are those of a run of n steps with that schedule, and the trunk is shared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mads.config.compose import ConfigError, compose, differences, trajectory
from mads.config.validate import validate
from mads.data.schema import Manifest, sha256_of

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
LIKE = "like="  # the first entry of a strategy that begins as another one does
# What the comparison sets itself: key -> what to use instead.
OWN = {
    "run_dir": "--folder says where the runs lie",
    "train.seed": "seeds=[...] lists the seeds",
    "train.branch_from": "branches=[...] lists the branches",
    "checkpoint.keep_steps": "branches=[...] lists the branches",
}


@dataclass(frozen=True)
class Branch:
    """A cooled end of a cell's trunk.

    fraction: of the whole run's steps, at its end; start: step at which it leaves the trunk; steps: at its end
    """

    fraction: float
    start: int
    steps: int


@dataclass(frozen=True)
class Cell:
    """One strategy with one seed.

    steps: of a whole run, cooled or not; trunk_steps: at which the trunk stops, where its last branch leaves it
    branches: by `steps`; empty without a cooldown, when the trunk is the whole run
    trunk, branch: overrides of `mads train` without run_dir, train.steps and what a single branch adds
    settings: flat key -> value, all that determines the result; digest: SHA-256 of it
    tokens_per_step: positions of a step
    """

    strategy: str
    seed: int
    steps: int
    trunk_steps: int
    branches: tuple[Branch, ...]
    trunk: tuple[str, ...]
    branch: tuple[str, ...]
    settings: dict[str, Any]
    digest: str
    tokens_per_step: int

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.seed}"

    @property
    def all_steps(self) -> int:
        """Optimizer steps of the trunk and all branches."""
        return self.trunk_steps + sum(b.steps - b.start for b in self.branches)


def branch_at(fraction: float, steps: int, cooldown: float) -> Branch:
    """The branch that ends at `fraction` of `steps`; its decay is that of mads.train.schedule for schedule=wsd."""
    end = round(fraction * steps)
    return Branch(fraction, end - max(1, round(cooldown * end)), end)


def make_cells(config, has_gpu: bool = False, run_overrides: Sequence[str] = ()) -> list[Cell]:
    """All cells, a seed at a time with the control first, so that a stop anywhere leaves comparable pairs.

    Args:
        config: a ComparisonConfig (mads.config.comparison).
        run_overrides: further overrides of every run, from the command line.

    Raises:
        ConfigError: with what cannot work, before any process starts.
        DataError: if a run's data.dir is not a prepared directory.
    """
    if errors := list(_errors(config)):
        raise ConfigError("\n".join(errors))
    tasks = {name: _file_hash(f"evaluation.{name}", path) for name, path in config.evaluation.items()}
    order = sorted(config.strategies, key=lambda name: name != config.control)
    made = {name: _cells_of(config, name, has_gpu, run_overrides, tasks) for name in order}
    cells = [cell for of_seed in zip(*made.values()) for cell in of_seed]
    shared = {(cell.steps * cell.tokens_per_step, cell.settings["data"]) for cell in cells}
    if len(shared) > 1:
        sizes = sorted(
            {f"{cell.strategy}: {cell.steps * cell.tokens_per_step:,} tokens of {cell.settings['data'][:12]}" for cell in cells}
        )
        raise ConfigError("strategies are compared at equal tokens of the same data, but these differ:\n  " + "\n  ".join(sizes))
    return cells


def _errors(config) -> Iterator[str]:
    names = list(config.strategies)
    if config.control not in names:
        yield f"control={config.control!r} is not one of the strategies {names}"
    if bad := [n for n in names if not NAME.fullmatch(n)]:
        yield f"strategy names {bad} must be letters, digits and _, a letter first: they name files"
    for name in names:
        try:
            overrides_of(config.strategies, name)
        except ConfigError as error:
            yield str(error)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        yield f"seeds={list(config.seeds)} must be different numbers, at least one, none below 0"
    for key in ("treatment", "primary"):
        if config[key] is not None and config[key] not in names:
            yield f"{key}={config[key]!r} is not one of the strategies {names}"
    if config.primary is not None and config.primary == config.treatment:
        yield f"primary={config.primary!r} is the treatment itself; name its opponent"
    if config.primary is not None and config.treatment is None:
        yield f"primary={config.primary!r} is the opponent of a treatment: set treatment"
    if unknown := sorted(set(config.branched or ()) - set(names)):
        yield f"branched={unknown} are not strategies"
    if not 0 <= config.cooldown < 1:
        yield f"cooldown={config.cooldown} must lie in [0, 1)"
    if config.branches and not config.cooldown:
        yield f"branches={list(config.branches)} are cooled down: set cooldown, 0.2 is usual, or branches=[]"
    if config.branched is not None and not config.branches:
        yield f"branched={list(config.branched)} says who gets branches, and branches is empty: leave it out"
    if wrong := [f for f in config.branches if not 0 < f < 1]:
        yield f"branches={wrong} must lie in (0, 1); every strategy is cooled at 1 anyway"
    if unknown := sorted(set(config.apart) - set(config.evaluation)):
        yield f"apart={unknown} are not evaluation tasks; those are {list(config.evaluation)}"
    if config.evaluation and not set(config.evaluation) - set(config.apart):
        yield f"apart={list(config.apart)} leaves no evaluation task for the mean"


def overrides_of(strategies: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """A strategy's overrides of `mads train`: before its own stand those of the strategy that a first entry like=OTHER names.

    Raises:
        ConfigError: OTHER is not a strategy or leads back to itself, or like= does not come first.
    """
    own, seen = list(strategies[name]), [name]
    while own and own[0].startswith(LIKE):
        other = own.pop(0).removeprefix(LIKE)
        if other in seen:
            raise ConfigError(f"strategy {name}: like= goes round in a circle: {' -> '.join([*seen, other])}")
        if other not in strategies:
            raise ConfigError(f"strategy {seen[-1]}: {LIKE}{other} is not one of the strategies {list(strategies)}")
        seen.append(other)
        own = [*strategies[other], *own]
    if late := [o for o in own if o.startswith(LIKE)]:
        raise ConfigError(f"strategy {name}: {late[0]} must be the first entry of a strategy, and the only one of its kind")
    return own


def _file_hash(key: str, path: str) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"{key}={path} is not a file; evaluation tasks are JSONL files")
    return sha256_of(Path(path))


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]


def _cells_of(config, strategy: str, has_gpu: bool, run_overrides: Sequence[str], tasks: dict[str, str]) -> list[Cell]:
    """A strategy's cells, by seed. Its configuration is composed once: seeds differ in train.seed only."""
    overrides = [*config.overrides, *run_overrides, *overrides_of(config.strategies, strategy)]
    own = dict(OWN) | ({"schedule": "cooldown=0 keeps the runs' own schedule"} if config.cooldown else {})
    for override in overrides:
        if _key(override) in own:
            raise ConfigError(f"strategy {strategy}: {override} is set by the comparison itself: {own[_key(override)]}")
    trunk = [*overrides, "schedule=constant"] if config.cooldown else overrides
    try:
        composed = compose([*trunk, "run_dir=unused"])
        steps, warmup = composed.train.steps, composed.schedule.warmup_steps
        branches = _branches(config, strategy, steps, warmup)
        keep = [f"checkpoint.keep_steps=[{','.join(str(b.start) for b in branches)}]"] if branches else []
        validate(composed, 1, has_gpu, trunk)
    except ConfigError as error:
        raise ConfigError(f"strategy {strategy}: {error}") from error
    manifest = Manifest.read(composed.data.dir)
    names = [a.name for a in manifest.attributes]
    if unknown := sorted(set(config.destroyed) - {*names, "destroyed"}):
        raise ConfigError(f"destroyed.{unknown[0]} is none of the attributes of {composed.data.dir}: {names}")
    settings = {
        **trajectory(composed),
        "train.eval_samples": composed.train.eval_samples,
        "train.eval_attributes": list(composed.train.eval_attributes),
        "data": manifest.shards_fingerprint("train"),
        **{f"attributes.{a.name}": manifest.attribute_fingerprint("train", a.name) for a in manifest.attributes},
        "compare.cooldown": config.cooldown,
        "compare.branches": [[b.fraction, b.start, b.steps] for b in branches],
        **{f"evaluation.{name}": value for name, value in tasks.items()},
        "compare.apart": sorted(config.apart),
    }
    cooled = [*overrides, "schedule=wsd", f"schedule.decay_fraction={config.cooldown}"] if branches else []
    cells = []
    for seed in config.seeds:
        own, chosen = settings | {"train.seed": seed}, [f"train.seed={seed}"]
        cells.append(
            Cell(
                strategy,
                seed,
                steps,
                branches[-1].start if branches else steps,
                branches,
                tuple([*trunk, *keep, *chosen]),
                tuple([*cooled, *chosen]) if cooled else (),
                own,
                digest(own),
                composed.train.global_batch_size * composed.data.seq_length,
            )
        )
    return cells


def _branches(config, strategy: str, steps: int, warmup: int) -> tuple[Branch, ...]:
    if not config.cooldown:
        return ()
    wanted = config.branches if config.branched is None or strategy in config.branched else ()
    branches = [branch_at(f, steps, config.cooldown) for f in sorted({*wanted, 1.0})]
    if branches[0].start < max(1, warmup):
        raise ConfigError(
            f"branches={branches[0].fraction:g} of train.steps={steps} leaves the trunk at step {branches[0].start}, within "
            f"schedule.warmup_steps={warmup}; train longer, or branch later"
        )
    if len({b.start for b in branches}) < len(branches):
        raise ConfigError(f"train.steps={steps} are too few to tell the branches {list(wanted)} apart; train longer")
    return tuple(branches)


def digest(settings: dict[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def changes(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Readable lines for settings that differ. Attributes that only one of them knows are no difference: a column that was added
    to the data, or taken out, was not used by a run that the other one continues."""
    one_sided = {k for k in set(now) ^ set(then) if k.startswith("attributes.")}
    return differences(*({k: v for k, v in settings.items() if k not in one_sided} for settings in (now, then)))


def changed_settings(cells: Sequence[Cell], folder: Path) -> list[str]:
    """Readable lines for cells whose results, or unfinished runs, in `folder` are of other settings."""
    lines = []
    for cell in cells:
        for path in (result_path(folder, cell.name), work_folder(folder, cell.name) / "cell.json"):
            if path.is_file():
                then = json.loads(path.read_text(encoding="utf-8"))["settings"]
                if found := changes(cell.settings, then):
                    lines += [f"{path}:", *(f"  {line}" for line in found)]
                break
    return lines


def result_path(folder: Path, name: str) -> Path:
    """Where the result of a finished cell is."""
    return folder / "results" / f"{name}.json"


def work_folder(folder: Path, name: str) -> Path:
    """Where the runs of a cell are."""
    return folder / "runs" / name


def write_plan(path: Path, cells: Sequence[Cell], config, threads: int) -> None:
    """plan.json: all that a job needs, wherever it runs."""
    value = {
        "parent": os.getpid(),
        "threads": threads,
        "evaluation": {name: str(Path(p).resolve()) for name, p in config.evaluation.items()},
        "apart": list(config.apart),
        "destroyed": {name: list(labels) for name, labels in config.destroyed.items()},
        "cells": [asdict(cell) for cell in cells],
    }
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_plan(path: Path) -> tuple[dict[str, Any], dict[str, Cell]]:
    """(the plan's other entries, cells by name)."""
    value = json.loads(path.read_text(encoding="utf-8"))
    cells = {}
    for fields in value.pop("cells"):
        fields["branches"] = tuple(Branch(**b) for b in fields["branches"])
        fields["trunk"], fields["branch"] = tuple(fields["trunk"]), tuple(fields["branch"])
        cell = Cell(**fields)
        cells[cell.name] = cell
    return value, cells
