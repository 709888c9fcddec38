"""Save on one layout of ranks, load on another: for dist/test_checkpoint_layouts.py, and for the whole matrix in full/.

A layout is {"grid": {"tp": 2, "dp": 1}, "zero": 1, "tied": true}. The vocabulary of 131 is padded at two and at four
tensor-parallel ranks, to different sizes.
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch

KEYS = ("weight", "exp_avg", "exp_avg_sq")
LOSS_TOLERANCE = 1e-6  # relative: fp32 sums in another order
DROPOUT = 0.1  # drawn from the step and the row, so that it goes on at any layout


def build(layout, seed):
    """An engine on this layout, as layouts.make."""
    import layouts

    more = [
        "model.num_layers=4",  # enough for four stages
        f"model.tie_embeddings={str(layout['tied']).lower()}",
        f"model.hidden_dropout={DROPOUT}",
        f"train.seed={seed}",
    ]
    return layouts.make(layout["grid"], layout["zero"], *more)


@functools.lru_cache(maxsize=1)
def target(text):
    """The engine that is loaded into, used again by the next source: what it held before must not matter."""
    return build(json.loads(text), seed=9)


def steps_of(built, numbers):
    """Losses of training steps on global batches that depend on the step's number only."""
    import layouts

    built.engine._seed = 0  # of the dropout: that of the start weights differs on purpose
    return [layouts.step(built, layouts.rows_of_step(50 + n), 1e-3, n).loss for n in numbers]


def whole_by_hand(pieces, layout):
    """The logical tensor, put together row by row: an independent mads.layout.unshard."""
    if layout.axis is None:
        return pieces[0]
    count = len(pieces)
    local = [np.moveaxis(piece, layout.axis, 0) for piece in pieces]
    rows, start = [], 0
    for size in layout.parts or (sum(len(piece) for piece in local),):
        each = size // count
        for row in range(size):
            rows.append(local[row // each][start + row % each])
        start += each
    whole = np.moveaxis(np.stack(rows), 0, layout.axis)
    return whole if layout.padded_from is None else whole.take(range(layout.padded_from), layout.axis)


def held(built):
    """{(key, name): logical tensor} of what this rank's stage holds, its copies of tied weights too."""
    from tp_groups import everyones

    from mads.layout import layout_of

    found = {}
    for key in KEYS:
        for name, parameter in built.engine.parameters:
            pieces = everyones(built.engine.state.full(parameter, key), built.topology.group("tp"))
            found[key, name] = whole_by_hand([p.numpy() for p in pieces], layout_of(parameter))
    return found


def read_files(folder):
    """{(key, name): array} of a checkpoint's files, read whole by safetensors; each name is in one file."""
    from safetensors.numpy import load_file

    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        for name, value in load_file(file).items():
            item = (file.name.split("-")[0], name)
            assert item not in found, f"{item} is in two files"
            found[item] = value
    return found


def same(ours, theirs, what):
    """Bit for bit, for every tensor that this rank holds."""
    assert ours and set(ours) <= set(theirs), f"{what}: {sorted(set(ours) - set(theirs))[:4]}"
    for item, value in ours.items():
        assert value.shape == theirs[item].shape, f"{what}: {item} is {value.shape} here and {theirs[item].shape} there"
        assert value.dtype == theirs[item].dtype == np.float32 and value.tobytes() == theirs[item].tobytes(), f"{what}: {item}"


def saver(built, root, **options):
    from mads.checkpoint.manifest import Keep
    from mads.checkpoint.saver import Saver

    settings = {"keep": Keep(2), "max_file_bytes": 20_000, "limit_s": 30.0} | options
    return Saver(Path(root), built.topology, **settings)


def check_source(root, layout):
    """Train, save, train on; the files hold what the ranks held. The losses after it are left in root/losses.json."""
    import torch.distributed as dist

    built = build(layout, seed=3)
    steps_of(built, [0, 1])
    before = held(built)
    torch.manual_seed(100 + dist.get_rank())
    writes = saver(built, root)
    writes.save(2, built.engine, {"step": 2}, {"pending_ids": np.arange(3)}, {})
    losses = steps_of(built, [2, 3, 4])
    writes.wait()
    files = read_files(Path(root) / "step-00000002")
    same(before, files, f"saved at {layout}")
    shapes = {name: shape for (_, name), shape in ((item, v.shape) for item, v in files.items())}
    assert shapes["embedding.weight"][0] == built.config.model.vocab_size and ("head.weight" in shapes) == (not layout["tied"])
    if dist.get_rank() == 0:
        (Path(root) / "losses.json").write_text(json.dumps({"losses": losses, "grid": layout["grid"]}))
    dist.barrier()


def check_target(root, layout):
    """Load: master weights and moments bit for bit those of the files, the same steps, the next three losses."""
    import torch.distributed as dist

    from mads.checkpoint import canonical
    from mads.layout import layout_of

    told = json.loads((Path(root) / "losses.json").read_text())
    what = f"saved at {told['grid']}, loaded at {layout}"
    folder = Path(root) / "step-00000002"
    built = target(json.dumps(layout))
    state, arrays = canonical.load(folder, built.engine, built.topology)
    assert state["step"] == 2 and arrays["pending_ids"].tolist() == [0, 1, 2] and built.engine.state.steps == 2
    same(held(built), read_files(folder), what)
    for name, parameter in built.engine.parameters:
        if layout_of(parameter).padded_from is not None and built.topology.coordinate("tp") == built.topology.size("tp") - 1:
            assert built.engine.state.full(parameter, "weight")[-1].count_nonzero() == 0, f"{what}: padding of {name}"
    restored = torch.equal(torch.get_rng_state(), torch.manual_seed(100 + dist.get_rank()).get_state())
    assert restored == (sized(told["grid"]) == sized(layout["grid"])), what
    losses = steps_of(built, [2, 3, 4])
    np.testing.assert_allclose(losses, told["losses"], rtol=LOSS_TOLERANCE, err_msg=what)


def sized(grid):
    return {axis: size for axis, size in grid.items() if size > 1}


def check_sources(pairs):
    for root, layout in pairs:
        check_source(root, layout)


def check_targets(pairs):
    for root, layout in pairs:
        torch.manual_seed(0)
        check_target(root, layout)
