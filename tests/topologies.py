"""Topologies of the harness's workers, each made once in a pool: every one opens groups with threads and sockets of their own,
which live as long as the worker."""

from __future__ import annotations

import functools

from mads.topology import Grid, Topology


@functools.cache
def topology(**sizes: int) -> Topology:
    """The topology of a grid. Every rank asks for the same ones in the same order."""
    return Topology(Grid(**sizes))
