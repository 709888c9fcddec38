"""A rank that cannot write or read takes all ranks with it, and the checkpoint before is still good (K5)."""

import errno
import json

import numpy as np
import pytest
from harness import run_ranks


def _save(built, root, step, files=None, asynchronous=True):
    """Save and wait; the folder."""
    from checkpoint_support import saver

    from mads.checkpoint.manifest import name_of

    saves = saver(built, root, asynchronous=asynchronous)
    saves.save(step, built.engine, {"step": step}, {"pending_ids": np.arange(step)}, files or {})
    saves.wait()
    return root / name_of(step)


def _step(built, seed):
    import model_support as support
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    micro, valid = support.micro_batches(support.global_batch(2 * world, seed=seed), rank, world)
    return built.engine.train_step(micro, valid, 1e-3).loss


def _full_disk(path):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def check_failing_writes(root, zero_stage, where, failing, asynchronous):
    """Save, fail to save, load what was saved: equal to an undisturbed continuation. failing: the rank whose disk is full."""
    from pathlib import Path

    import model_support as support
    import torch.distributed as dist

    from mads.checkpoint import canonical
    from mads.checkpoint import saver as saver_module
    from mads.checkpoint.finding import find_latest
    from mads.checkpoint.manifest import CheckpointError

    root = Path(root)
    built = support.make_engine(zero_stage)
    _step(built, 0)
    _save(built, root, 1)
    expected = _step(built, 1)
    real = saver_module.write_tensors
    try:
        if where == "weights" and dist.get_rank() == failing:
            saver_module.write_tensors = lambda path, tensors: _full_disk(path)
        ledger = _full_disk if dist.get_rank() == failing else lambda path: None
        # The failing rank and its error, and not that others could not go on because of it.
        with pytest.raises(CheckpointError, match=f"saving checkpoint 2 failed: rank {failing}: [^;]*No space left[^;]*$"):
            _save(built, root, 2, {"ledger.bin": ledger} if where == "ledger" else None, asynchronous)
    finally:
        saver_module.write_tensors = real
    dist.barrier()
    assert sorted(p.name for p in root.iterdir()) == ["latest", "step-00000001"]  # nothing of the failed save is left
    found = find_latest(root)
    again = support.make_engine(zero_stage, seed=5)
    state, arrays = canonical.load(found, again.engine, again.topology)
    assert (state["step"], arrays["pending_ids"].tolist()) == (1, [0])
    assert _step(again, 1) == expected  # bit for bit
    assert _save(again, root, 2).name == "step-00000002"  # and saving works again


@pytest.mark.parametrize(
    "zero_stage, where, failing, asynchronous",
    [(1, "ledger", 0, True), (1, "weights", 0, True), (3, "weights", 1, True), (2, "weights", 1, False), (1, "ledger", 1, False)],
)
def test_k5_a_full_disk_fails_on_all_ranks_and_leaves_the_previous_checkpoint(tmp_path, zero_stage, where, failing, asynchronous):
    run_ranks(2, check_failing_writes, str(tmp_path / "checkpoints"), zero_stage, where, failing, asynchronous, timeout=120)


def check_bad_root(root):
    import model_support as support

    from mads.checkpoint.manifest import CheckpointError

    built = support.make_engine(1)
    from pathlib import Path

    with pytest.raises(CheckpointError, match="saving checkpoint 1 failed: rank 0: "):
        _save(built, Path(root) / "file" / "checkpoints", 1)


def test_a_folder_that_cannot_be_made_fails_on_all_ranks(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    run_ranks(2, check_bad_root, str(tmp_path))


def check_refused_loads(root):
    from pathlib import Path

    import model_support as support

    from mads.checkpoint import canonical
    from mads.checkpoint.manifest import CheckpointError

    built = support.make_engine(1)
    _step(built, 0)
    path = _save(built, Path(root), 1)
    _check_shared_work(path)
    other = support.make_engine(1, overrides=["model.ffn_hidden_size=64"])
    with pytest.raises(CheckpointError, match="has shape .* in the checkpoint .*of another model"):
        canonical.load(path, other.engine, other.topology)
    taller = support.make_engine(1, overrides=["model.num_layers=3"])
    with pytest.raises(CheckpointError, match="the checkpoint lacks .*layers.2"):
        canonical.load(path, taller.engine, taller.topology)
    before = {n: built.engine.state.full(p, "weight").clone() for n, p in built.engine.parameters}
    if built.topology.rank == 0:
        _damage(path)
    import torch.distributed as dist

    dist.barrier()
    with pytest.raises(
        CheckpointError, match="loading step-00000001 failed: rank 0: .*exp_avg_sq-00001-00000.safetensors is damaged"
    ):
        canonical.load(path, built.engine, built.topology)
    assert all((built.engine.state.full(p, "weight") == before[n]).all() for n, p in built.engine.parameters)


def _check_shared_work(path):
    """Both ranks wrote about half of it."""
    sizes = [sum(f.stat().st_size for f in path.glob(f"*-{rank:05d}-*.safetensors")) for rank in (0, 1)]
    assert min(sizes) > 0.4 * sum(sizes), sizes


def _damage(path):
    file = path / "exp_avg_sq-00001-00000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)


def test_k3_checkpoints_of_another_model_or_damaged_are_refused_on_all_ranks(tmp_path):
    run_ranks(2, check_refused_loads, str(tmp_path / "checkpoints"), timeout=120)
    names = json.loads((tmp_path / "checkpoints" / "step-00000001" / "manifest.json").read_text())["files"]
    assert len([n for n in names if n.startswith("weight-")]) > 1  # split at 20,000 bytes, whatever the test above loaded
