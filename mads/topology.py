"""The grid of ranks (pp, dp, cp, tp), its process groups, and the `mpu` face that DeepSpeed asks for.

`Grid` is arithmetic only and can be used without any process group; `Topology` adds the groups. A topology is passed to
whoever needs it; nothing in mads reads the default process group.
"""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass

import torch.distributed as dist

AXES = ("pp", "dp", "cp", "tp")  # slowest first: tensor-parallel ranks are contiguous, as NVLink wants them


@dataclass(frozen=True)
class Grid:
    """Sizes of the four axes; rank = ((pp * DP + dp) * CP + cp) * TP + tp."""

    pp: int = 1
    dp: int = 1
    cp: int = 1
    tp: int = 1

    def __post_init__(self):
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise ValueError(f"parallel size {axis}={getattr(self, axis)} must be at least 1")

    @property
    def world_size(self) -> int:
        return self.pp * self.dp * self.cp * self.tp

    def coordinates(self, rank: int) -> dict[str, int]:
        """Position of a global rank on each axis."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside of the grid {self} with {self.world_size} ranks")
        position = {}
        for axis in reversed(AXES):
            rank, position[axis] = divmod(rank, getattr(self, axis))
        return position

    def rank(self, **coordinates: int) -> int:
        """Global rank at the given coordinates; axes not named are 0."""
        rank = 0
        for axis in AXES:
            rank = rank * getattr(self, axis) + coordinates.get(axis, 0)
        return rank

    def groups(self, *axes: str) -> list[list[int]]:
        """All groups of ranks that differ only on `axes`, each in ascending order, in an order equal on all ranks."""
        fixed = [a for a in AXES if a not in axes]
        varying = [a for a in AXES if a in axes]
        result = []
        for outer in itertools.product(*(range(getattr(self, a)) for a in fixed)):
            base = dict(zip(fixed, outer))
            inner = itertools.product(*(range(getattr(self, a)) for a in varying))
            result.append([self.rank(**base, **dict(zip(varying, i))) for i in inner])
        return result

    def __str__(self) -> str:
        return f"PP({self.pp})-DP({self.dp})-CP({self.cp})-TP({self.tp})"


def grid_of(parallel, world_size: int) -> Grid:
    """The grid of `world_size` ranks under the config section `parallel`: what the other sizes leave over is data parallel.

    Raises:
        ValueError: if the sizes do not divide the number of ranks.
    """
    sizes = {
        "pp": parallel.pipeline_model_parallel_size,
        "cp": parallel.context_parallel_size,
        "tp": parallel.tensor_model_parallel_size,
    }
    one_replica = Grid(**sizes).world_size
    if world_size % one_replica:
        raise ValueError(
            f"{world_size} processes cannot be cut into replicas of {one_replica} (pipeline {sizes['pp']} x context {sizes['cp']}"
            f" x tensor {sizes['tp']}); start a multiple of that, or change the sizes in `parallel`"
        )
    return Grid(dp=world_size // one_replica, **sizes)


# Name of a group -> the axes on which its ranks differ.
GROUP_AXES = {
    "tp": ("tp",),
    "cp": ("cp",),
    "dp": ("dp",),
    "pp": ("pp",),
    "dp_cp": ("dp", "cp"),
    "model": ("pp", "tp"),
    "replica": ("pp", "cp", "tp"),
    "stage": ("dp", "cp", "tp"),
    "world": AXES,
}


def named_groups(grid: Grid) -> dict[str, list[list[int]]]:
    """All groups of every name, in the order in which every rank creates them. `embedding` joins the ends of a pipeline."""
    groups = {name: grid.groups(*axes) for name, axes in GROUP_AXES.items()}
    if grid.pp > 1:
        groups["embedding"] = [[ranks[0], ranks[-1]] for ranks in groups["pp"]]
    return groups


class Topology:
    """This rank's place in a `Grid`, with the process groups of every axis.

    Groups, by name:
      tp, cp, dp, pp    ranks that differ on that axis only; tensors of the training step travel here
      dp_cp             the ranks that a gradient is averaged over
      model             the ranks that hold different parts of one model: gradient norms are summed here
      replica           the ranks that work on one batch
      stage             the ranks that hold the same layers
      embedding         first and last stage, of a pipeline only: the ranks that share tied weights
      world             every rank, on the training backend
      control           every rank, always gloo with its own time limit: scores, ids, hashes and manifests travel here,
                        because NCCL moves GPU tensors only and its time-out belongs to the training step

    Args:
        grid: sizes of the axes; their product must be the world size.
        timeout_s: time limit of the training groups, in seconds.
        control_timeout_s: time limit of the control group, in seconds.

    Raises:
        ValueError: if the grid does not fill the world exactly.
    """

    def __init__(self, grid: Grid, timeout_s: float = 1800.0, control_timeout_s: float = 1800.0):
        world_size = dist.get_world_size()
        if grid.world_size != world_size:
            raise ValueError(
                f"the grid {grid} has {grid.world_size} ranks, but {world_size} processes were started; "
                "change the parallel sizes or the number of processes"
            )
        self.grid = grid
        self.rank = dist.get_rank()
        self.world_size = world_size
        self.coordinates = grid.coordinates(self.rank)
        self._groups: dict[str, dist.ProcessGroup] = {}
        timeout = datetime.timedelta(seconds=timeout_s)
        made: dict[tuple[int, ...], dist.ProcessGroup] = {}  # axes of size 1 make many names mean the same ranks
        for name, groups in named_groups(grid).items():
            for ranks in groups:  # every rank creates every group, in the same order
                if tuple(ranks) not in made:
                    made[tuple(ranks)] = dist.new_group(ranks, timeout=timeout)
                if self.rank in ranks:
                    self._groups[name] = made[tuple(ranks)]
        self._groups["control"] = dist.new_group(
            list(range(world_size)), backend="gloo", timeout=datetime.timedelta(seconds=control_timeout_s)
        )

    def group(self, name: str) -> dist.ProcessGroup:
        """This rank's group of that name; KeyError for `embedding` on a rank that is on neither end of a pipeline."""
        return self._groups[name]

    def has_group(self, name: str) -> bool:
        return name in self._groups

    def size(self, axis: str) -> int:
        return getattr(self.grid, axis)

    def coordinate(self, axis: str) -> int:
        return self.coordinates[axis]

    @property
    def is_first_stage(self) -> bool:
        return self.coordinates["pp"] == 0

    @property
    def is_last_stage(self) -> bool:
        return self.coordinates["pp"] == self.grid.pp - 1

    @property
    def replica_leaders(self) -> list[int]:
        """Global ranks that lead a model replica (first on pp, cp and tp), in order of their dp coordinate."""
        return [self.grid.rank(dp=d) for d in range(self.grid.dp)]

    @property
    def is_replica_leader(self) -> bool:
        return self.rank in self.replica_leaders

    def describe(self) -> str:
        """For people: the grid, this rank's place in it, and of every name how many groups there are and which is this rank's."""
        lines = [f"{self.grid}, {self.world_size} rank{'s' if self.world_size > 1 else ''}; this is {self._place()}"]
        for name, groups in named_groups(self.grid).items():
            own = next((ranks for ranks in groups if self.rank in ranks), None)
            count = f"{len(groups)} x {len(groups[0])}"
            lines.append(f"  {name:9} {count:>9}   {'not in one' if own is None else _brief(own)}")
        return "\n".join(
            [*lines, f"  {'control':9} {f'1 x {self.world_size}':>9}   {_brief(list(range(self.world_size)))} over gloo"]
        )

    def _place(self) -> str:
        return f"rank {self.rank} ({' '.join(f'{axis}={self.coordinates[axis]}' for axis in AXES)})"

    def __str__(self) -> str:
        return f"{self.grid} {self._place()}"


def _brief(ranks: list[int], most: int = 16) -> str:
    """Ranks for people: all of a few, else the first ones, the last and their number."""
    if len(ranks) <= most:
        return f"[{', '.join(map(str, ranks))}]"
    return f"[{', '.join(map(str, ranks[:4]))}, ..., {ranks[-1]}] ({len(ranks)} ranks)"


class MPU:
    """The model-parallel unit object that `deepspeed.initialize(mpu=...)` asks for, of a grid without pipeline stages (a
    PipelineModule brings its own).

    DeepSpeed reads the model-parallel side under two names (its ZeRO-3 path asks for `get_model_parallel_*`, others
    prefer `get_tensor_model_parallel_*`), and reduces gradients over data parallel alone unless the sequence names exist.
    ZeRO 3 does so even with them: it cuts parameters over the data-parallel group and reduces gradients over no other. So there
    the ranks of context parallelism are data-parallel ones for DeepSpeed.
    """

    def __init__(self, topology: Topology, zero_stage: int = 0):
        self._t = topology
        # The axis of stages has one rank here: DeepSpeed's way of saying that a sequence is not shared.
        self._data, self._sequence = ("dp_cp", "pp") if zero_stage == 3 else ("dp", "cp")

    def get_model_parallel_rank(self) -> int:
        return self._t.coordinate("tp")

    def get_model_parallel_world_size(self) -> int:
        return self._t.size("tp")

    def get_model_parallel_group(self):
        return self._t.group("tp")

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_tensor_model_parallel_src_rank(self) -> int:
        return self._t.grid.rank(**{**self._t.coordinates, "tp": 0})

    def get_data_parallel_rank(self) -> int:
        return self.get_data_parallel_group_ranks().index(self._t.rank)

    def get_data_parallel_world_size(self) -> int:
        return len(self.get_data_parallel_group_ranks())

    def get_data_parallel_group(self):
        return self._t.group(self._data)

    def get_data_parallel_group_ranks(self) -> list[int]:
        return next(ranks for ranks in self._t.grid.groups(*GROUP_AXES[self._data]) if self._t.rank in ranks)

    def get_sequence_parallel_rank(self) -> int:
        return self._t.coordinate(self._sequence)

    def get_sequence_parallel_world_size(self) -> int:
        return self._t.size(self._sequence)

    def get_sequence_parallel_group(self):
        return self._t.group(self._sequence)

    def get_sequence_data_parallel_rank(self) -> int:
        return self._t.coordinate("dp") * self._t.size("cp") + self._t.coordinate("cp")

    def get_sequence_data_parallel_world_size(self) -> int:
        return self._t.size("dp") * self._t.size("cp")

    def get_sequence_data_parallel_group(self):
        return self._t.group("dp_cp")

    def get_pipeline_model_parallel_rank(self) -> int:
        return 0

    def get_pipeline_model_parallel_world_size(self) -> int:
        return 1

    def get_pipeline_model_parallel_group(self):
        return self._t.group("pp")


def initialize_process_group(backend: str, timeout_s: float, at: tuple[dist.Store, int, int] | None = None) -> dist.ProcessGroup:
    """Join the default process group from the variables that launchers set (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    at: (store, rank, number of ranks) instead of the variables.
    """
    if not dist.is_initialized():
        place = {} if at is None else {"store": dist.PrefixStore(backend, at[0]), "rank": at[1], "world_size": at[2]}
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s), **place)
    return dist.group.WORLD


def open_store(address: str, port: int, serve: bool, timeout_s: float) -> dist.Store:
    """A key-value store that one process serves at this address and the others reach.

    Raises:
        RuntimeError: the port is taken, or nobody answers.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    return dist.TCPStore(address, port, None, serve, timeout, wait_for_workers=False)


def shut_down() -> None:
    """Leave in order: a process that ends without it may abort after all of its work is done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
