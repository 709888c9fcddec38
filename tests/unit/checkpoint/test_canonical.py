"""Files of bounded size that any safetensors reads, pieces of tensors, and names and shapes that must fit the model."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mads.checkpoint.canonical import CheckpointError, _check_names, _index
from mads.checkpoint.manifest import publish
from mads.checkpoint.saver import Chunks
from mads.checkpoint.tensors import KEYS, assemble, deal, read_piece, stage_items, write_pieces, write_tensors
from mads.layout import REPLICATED, Layout, mark, shard


def tensors(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.randn(n, 2, generator=generator) for i, n in enumerate(sizes)}


class DirectWriter:
    """Writes at once, where a Writer would in its thread."""

    def __init__(self, folder, rank=0):
        self.folder, self.rank, self.items, self.waiting = folder, rank, [], []

    def add(self, name, write, items):
        self.items += items
        self.waiting.append((name, write))

    def write(self):
        for name, write in self.waiting:
            write(self.folder / name)


@pytest.mark.parametrize(
    "sizes, max_bytes, files",
    [
        ([4, 4, 4], 10**6, [3]),
        ([4, 4, 4], 64, [2, 1]),  # 32 bytes each
        ([4, 4, 4], 63, [1, 1, 1]),
        ([1, 100, 1], 64, [1, 1, 1]),  # one tensor over the limit gets a file of its own
        ([4], 1, [1]),
        ([], 64, []),
    ],
)
def test_files_are_split_at_max_bytes_and_load_back(tmp_path, sizes, max_bytes, files):
    given = tensors(sizes)
    writer = DirectWriter(tmp_path, rank=3)
    chunks = Chunks("weight", max_bytes, writer)
    for name, tensor in given.items():
        chunks.add(name, [tensor], REPLICATED)
    chunks.flush()
    writer.write()
    written = [load_file(f) for f in sorted(tmp_path.iterdir())]
    assert [len(w) for w in written] == files
    assert [f.name for f in sorted(tmp_path.iterdir())] == [f"weight-00003-{i:05d}.safetensors" for i in range(len(files))]
    merged = {name: value for w in written for name, value in w.items()}
    assert merged.keys() == given.keys() and all(torch.equal(merged[n], given[n]) for n in given)
    assert writer.items == [("weight", name) for name in given]
    root = tmp_path.with_name(tmp_path.name + "-published")
    root.mkdir()
    published = publish(root, tmp_path, 1)
    # A file that the manifest does not name is not read, whatever its name says.
    save_file({"smuggled": torch.zeros(1)}, published / "weight-99999.safetensors")
    assert {n: shape for n, (_, shape) in _index(published, "weight").items()} == {n: tuple(t.shape) for n, t in given.items()}


def check_copied(folder):
    """A tensor that changes after it was added is written as it was, from one shard and from several."""
    folder.mkdir(exist_ok=True)
    writer = DirectWriter(folder)
    chunks = Chunks("weight", 10**6, writer)
    alone, halves = torch.ones(3), [torch.ones(2, 2), torch.full((2, 2), 2.0)]
    chunks.add("a", [alone], REPLICATED)
    chunks.add("b", halves, Layout(axis=0, padded_from=3))
    for tensor in (alone, *halves):
        tensor.zero_()
    chunks.add("c", [torch.ones(3, dtype=torch.float64)], REPLICATED)
    chunks.flush()
    writer.write()
    loaded = load_file(folder / "weight-00000-00000.safetensors")
    assert loaded["a"].tolist() == [1.0, 1.0, 1.0] and loaded["c"].dtype == torch.float32
    assert loaded["b"].tolist() == [[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]]


def test_k4_a_tensor_is_copied_when_it_is_added(tmp_path):
    check_copied(tmp_path / "files")


def test_the_file_is_that_of_the_library_with_size_and_hash(tmp_path):
    given = tensors([3, 1, 7]) | {"layer.µ": torch.tensor([float("nan"), -0.0, 1e-45]), "scalar": torch.tensor(2.5)}
    told = write_tensors(tmp_path / "ours", given)
    raw = (tmp_path / "ours").read_bytes()
    assert told == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    save_file(given, tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() == given.keys()
    assert all(ours[n].numpy().tobytes() == theirs[n].numpy().tobytes() for n in given)
    with pytest.raises(TypeError, match="bad is torch.float64"):
        write_tensors(tmp_path / "bad", {"bad": torch.zeros(1, dtype=torch.float64)})


LAYOUTS = [
    (REPLICATED, (5, 3)),
    (Layout(axis=0), (8, 3)),
    (Layout(axis=1), (3, 8)),
    (Layout(axis=0, parts=(8, 4, 4)), (16, 3)),
    (Layout(axis=0, parts=(12, 12)), (24,)),
    (Layout(axis=0, padded_from=5), (5, 3)),  # at 4 ranks 8 rows: the third has one row, the last none
    (Layout(axis=0, padded_from=9), (9, 2)),
]


@pytest.mark.parametrize("layout, shape", LAYOUTS)
def test_k1_k2_pieces_read_from_a_file_are_the_shards_and_go_together_again(tmp_path, layout, shape):
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    write_tensors(tmp_path / "file", {"other": torch.randn(4), "x": whole})
    for count in (1, 2, 4):
        if layout.padded_from is None:
            padded = whole
        else:
            padded = torch.zeros([-(-shape[0] // count) * count, *shape[1:]])
            padded[: shape[0]] = whole
        shards = [shard(padded, layout, i, count) for i in range(count)]
        with safe_open(str(tmp_path / "file"), framework="pt") as f:
            pieces = [read_piece(f.get_slice("x"), layout, tuple(s.shape), i, count) for i, s in enumerate(shards)]
        assert all(torch.equal(p, s) and p.is_contiguous() for p, s in zip(pieces, shards)), count
        assert torch.equal(assemble(pieces if layout.sharded else pieces[:1], layout), whole), count


def test_items_are_dealt_out_evenly_and_alike_on_all_ranks():
    rng = np.random.default_rng(0)
    items = {("weight", f"layer.{i}"): int(n) for i, n in enumerate(rng.integers(1, 1000, 60))} | {("exp_avg", "large"): 4000}
    owner = deal(items, [4, 5, 6, 7])
    assert deal(dict(reversed(items.items())), [4, 5, 6, 7]) == owner and owner.keys() == items.keys()
    load = {rank: sum(n for item, n in items.items() if owner[item] == rank) for rank in (4, 5, 6, 7)}
    assert max(load.values()) - min(load.values()) <= 50 and sum(load.values()) == sum(items.values())
    assert set(deal({("weight", "only"): 1}, [8, 9]).values()) == {8}


def check_copies_are_left_out():
    """The last stage's copy of a tied weight is not saved: the first stage saves it."""
    tied, norm = torch.nn.Parameter(torch.zeros(8, 2)), torch.nn.Parameter(torch.zeros(2))
    mark(tied, Layout(axis=0, padded_from=7), "embedding.weight", copy=True)
    mark(norm, REPLICATED, "norm.weight")
    last = [("embedding.weight", tied), ("norm.weight", norm)]
    shapes = {"embedding.weight": torch.Size([7, 2]), "layers.0.norm.weight": torch.Size([2]), "norm.weight": torch.Size([2])}
    items = stage_items(SimpleNamespace(parameters=last, logical_shapes=shapes))
    assert items == {(key, "norm.weight"): 2 for key in KEYS}
    mark(tied, Layout(axis=0, padded_from=7), "embedding.weight")
    items = stage_items(SimpleNamespace(parameters=last, logical_shapes=shapes))
    assert items == {(key, name): size for key in KEYS for name, size in (("embedding.weight", 14), ("norm.weight", 2))}


def test_v8_k1_copies_of_tied_weights_are_not_saved():
    check_copies_are_left_out()


def test_names_and_shapes_of_another_model_are_refused():
    expected = {"a": (2, 3), "b": (4,)}
    _check_names({"a": ("f", [2, 3]), "b": ("f", (4,))}, expected, "weight")
    for index, words in (
        ({"a": ("f", (2, 3))}, r"weight: the checkpoint lacks \['b'\]"),
        ({"a": ("f", (2, 3)), "b": ("f", (4,)), "c": ("f", (1,))}, r"unknown \['c'\]"),
        ({"a": ("f", (3, 2)), "b": ("f", (4,))}, r"weight/a has shape \(3, 2\) in the checkpoint and \(2, 3\) in the model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            _check_names(index, expected, "weight")


def test_a_name_in_two_files_is_refused(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    for number in (0, 1):
        write_tensors(folder / f"weight-{number:05d}.safetensors", {"a": torch.zeros(2)})
    published = publish(tmp_path, folder, 1)
    with pytest.raises(CheckpointError, match="weight/a is in weight-00000.safetensors and in weight-00001.safetensors"):
        _index(published, "weight")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_file_and_how_far_it_came():
    with pytest.raises(OSError, match="No space left on device after 2 bytes: '/dev/full'"):
        write_pieces(Path("/dev/full"), [b"ab"], [b"x" * 1_000_000])  # of which the first waits in a buffer
