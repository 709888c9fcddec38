"""Rounds of a console that chooses by a column or a mix, and the same decisions by loops over single samples."""

import dataclasses
import functools
import math

import numpy as np
from agent_support import valued_pool
from fake_pool import FakePool

from mads.config.schema import ColumnSelectionConfig, MixSelectionConfig
from mads.console.choose import own_slice
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.noise import gumbel, hash64, uniform

SEED, BUDGET, ROUNDS = 5, 6000, 6
COLUMN = ColumnSelectionConfig(name="column", column="value")
BOUNDS = {"domain": {"domain1": [0.3, 0.5], "domain4": [0.0, 0.01]}}
CONFIGS = {
    "top_k": COLUMN,
    "bottom_k": dataclasses.replace(COLUMN, descending=False),
    "gumbel": dataclasses.replace(COLUMN, selector="gumbel", temperature=2.0),
    "proportional": dataclasses.replace(COLUMN, selector="proportional"),
    "inversely": dataclasses.replace(COLUMN, selector="proportional", descending=False),
    "band": dataclasses.replace(COLUMN, selector="random", band=[0.25, 0.75]),
    "top of a band": dataclasses.replace(COLUMN, band=[0.0, 0.6], max_uses=2),
    "bounds": dataclasses.replace(COLUMN, selector="gumbel", temperature=2.0, bounds=BOUNDS),
    "bounds and band": dataclasses.replace(COLUMN, bounds=BOUNDS, band=[0.1, 0.9]),
    "mix": MixSelectionConfig(name="mix", attribute="domain", shares={"domain5": 3.0, "domain0": 1.0, "domain2": 0.0}),
}


def positive_pool(n=701):
    """`valued_pool` with positive values, many of them equal."""
    pool = valued_pool(n)
    columns = {name: (pool.codes(name), pool.labels(name)) for name in pool.attributes}
    values = pool.values("value")
    return FakePool(pool.ids, pool.lengths, columns, {"value": values - values.min() + np.float32(0.25)})


def static_rounds(topology, name, exchange, rounds=ROUNDS):
    """Ids that each round decided, and the notes of its record on rank 0."""
    pool, found = positive_pool(), []
    own, uses = slice(*own_slice(pool, topology)), np.zeros(len(pool), np.uint16)
    strategy = build_strategy(dataclasses.replace(CONFIGS[name], exchange=exchange))
    console = Console(topology, pool, [], strategy, SEED, piece=100)
    for _ in range(rounds):
        assert not console.needs_rewards()
        ids, record = console.decide(None, uses[own], BUDGET, 0, 0)
        uses[np.searchsorted(pool.ids, ids)] += 1
        found.append((ids.tolist(), record and record.notes))
    return found


# ---------------------------------------------------------------- loops that know nothing of arrays or of searching


def quantile(values, lengths, level):
    """The least value at or below which the given part of the tokens lies."""
    before, total = 0, sum(lengths)
    for value, length in sorted(zip(values, lengths)):
        before += length
        if before >= level * total:
            return value


@functools.cache
def naive_rounds(name, rounds=ROUNDS):
    """Sets of ids, one sample at a time."""
    pool, config, found = positive_pool(), CONFIGS[name], []
    ids, lengths, values = pool.ids.tolist(), pool.lengths.tolist(), pool.values("value").tolist()
    domain = [pool.labels("domain")[code] for code in pool.codes("domain")]
    uses = dict.fromkeys(ids, 0)
    for round_ in range(rounds):
        noise = gumbel(SEED, "decide/noise", round_, pool.ids).tolist()
        ties = hash64(SEED, "decide/ties", round_, pool.ids).tolist()
        if config.name == "mix":
            noise = (hash64(SEED, "decide/noise", round_, pool.ids) >> np.uint64(17)).tolist()
            taken = _mixed(config, round_, pool, domain, sorted(range(len(ids)), key=lambda i: (uses[ids[i]], noise[i], ties[i])))
        else:
            keys = [_key(config, value, g) for value, g in zip(values, noise)]
            order = sorted(range(len(ids)), key=lambda i: (uses[ids[i]], -keys[i], ties[i]))
            order = [i for i in order if config.max_uses is None or uses[ids[i]] < config.max_uses]
            if config.band:
                low, high = (quantile(values, lengths, level) for level in config.band)
                order = [i for i in order if low <= values[i] <= high or (config.band[0] == 0 and values[i] < low)]
            taken = _taken(config, order, domain, lengths)
        found.append({ids[i] for i in taken})
        for i in taken:
            uses[ids[i]] += 1
    return found


def _key(config, value, noise):
    sign = 1 if config.descending else -1
    return {
        "top_k": lambda: sign * value,
        "gumbel": lambda: sign * value / (config.temperature or 1) + noise,
        "proportional": lambda: sign * math.log(value) + noise,
        "random": lambda: noise,
    }[config.selector]()


def _taken(config, order, domain, lengths):
    bounds = config.bounds.get("domain", {})
    tokens, taken = dict.fromkeys(domain, 0), []
    for label, (least, _) in bounds.items():
        for i in order:
            if domain[i] == label and tokens[label] < math.ceil(least * BUDGET):
                taken.append(i)
                tokens[label] += lengths[i]
    for i in order:
        most = bounds.get(domain[i], (0, 1))[1]
        if sum(tokens.values()) < BUDGET and i not in taken and (most == 1 or tokens[domain[i]] < math.ceil(most * BUDGET)):
            taken.append(i)
            tokens[domain[i]] += lengths[i]
    return taken


def _mixed(config, round_, pool, domain, order):
    start = uniform(SEED, "decide/start", round_, np.arange(len(pool.labels("domain"))))
    queues = {label: [i for i in order if domain[i] == label] for label, share in config.shares.items() if share > 0}
    tokens, taken, total = dict.fromkeys(queues, 0), [], sum(config.shares.values())

    def due(label):
        u = start[pool.labels("domain").index(label)]
        return (tokens[label] + u * int(pool.lengths[queues[label][0]])) / (config.shares[label] / total)

    while sum(tokens.values()) < BUDGET and any(queues.values()):
        label = min((label for label in queues if queues[label]), key=due)
        i = queues[label].pop(0)
        taken.append(i)
        tokens[label] += int(pool.lengths[i])
    return taken
