"""Documents that say exactly what an earlier one says."""

from __future__ import annotations

import numpy as np

from mads.data.pool import key_path
from mads.data.prepare.job import Job
from mads.data.prepare.survey import Surveyed
from mads.data.rejects import Rejects


def known_keys(job: Job, part: str) -> np.ndarray:
    """uint64 [n, 2], key and check of every document of a part of the earlier generations."""
    shards = range(job.first_shard)
    found = [np.load(key_path(job.directory, part, shard), mmap_mode="r") for shard in shards]
    return np.concatenate([np.zeros((0, 2), np.uint64), *found])


def exact_duplicates(job: Job, found: Surveyed, removals: Rejects) -> np.ndarray:
    """Which documents equal an earlier one, bool [n]. The first stays, and if an earlier generation has the text, none does.

    Equal means equal in 128 bits of two hashes (mads.data.split.text_keys): texts that share the 64 bits of a key alone are kept.
    """
    earlier = [known_keys(job, part) for part in ("train", "heldout")] if job.before is not None else []
    known = np.concatenate([np.zeros((0, 2), np.uint64), *earlier])
    keys = np.concatenate([known[:, 0], found.keys])
    checks = np.concatenate([known[:, 1], found.checks])
    order = np.lexsort((checks, keys))  # stable: equal ones stay in input order
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]) | (checks[order[1:]] != checks[order[:-1]])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]  # of each one's group
    again = ~begins & (order >= len(known))
    duplicate, original = order[again] - len(known), first[again] - len(known)
    for index, source in sorted(zip(duplicate.tolist(), original.tolist())):
        same = found.place(source) if source >= 0 else "a document that the directory has already"
        removals.add("duplicate", found.origins[found.origin_codes[index]], int(found.lines[index]), f"same text as {same}")
    removed = np.zeros(len(found.keys), dtype=bool)
    removed[duplicate] = True
    return removed
