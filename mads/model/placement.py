"""How one model is cut over ranks, as far as its layers need to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mads.collectives import slice_of
from mads.topology import Topology


@dataclass(frozen=True)
class Placement:
    """Passed to every layer of a decoder.

    tp, cp: groups of tensor and of context parallelism; None = this rank alone.
    sequence_parallel: hidden states between a block's row-parallel and the next column-parallel layer are cut along the sequence
        over `tp`.
    overlap: a layer's backward collective runs while its weight gradient is computed; the same numbers bit for bit.
    recompute: what backward computes again instead of keeping: none | selective | full.
    """

    tp: Any = None
    cp: Any = None
    sequence_parallel: bool = False
    overlap: bool = True
    recompute: str = "none"

    @classmethod
    def of(cls, topology: Topology, parallel) -> Placement:
        """This rank's, from the config section `parallel`. A group of one is None: layers ask for sizes in every forward."""
        tp, cp = (topology.group(axis) if topology.size(axis) > 1 else None for axis in ("tp", "cp"))
        return cls(
            tp=tp,
            cp=cp,
            sequence_parallel=parallel.sequence_parallel,
            overlap=parallel.tensor_parallel_overlap,
            recompute=parallel.activation_checkpointing,
        )

    @property
    def for_layers(self) -> dict[str, Any]:
        """What every layer of mads.tensor is told."""
        return {"group": self.tp, "sequence_parallel": self.sequence_parallel, "context": self.cp}

    def positions(self, total: int) -> slice:
        """Which of a row's `total` positions this rank works on.

        Raises:
            ValueError: if they cannot be cut equally over the context-parallel ranks.
        """
        return slice_of(total, self.cp)

    def hidden_positions(self, total: int) -> slice:
        """Which of a row's `total` positions this rank holds hidden states of, between the layers.

        Raises:
            ValueError: if they cannot be cut equally over the context-parallel (and, under sequence parallelism, tensor-parallel)
                ranks.
        """
        return slice_of(total, self.cp, self.tp) if self.sequence_parallel else slice_of(total, self.cp)


ALONE = Placement()
