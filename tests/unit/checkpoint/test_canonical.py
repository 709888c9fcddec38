"""Files of bounded size, and names and shapes that must fit the model."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mads.checkpoint.canonical import CheckpointError, _check_names, _ChunkWriter, _index
from mads.checkpoint.manifest import publish


def tensors(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.randn(n, 2, generator=generator) for i, n in enumerate(sizes)}


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
    writer = _ChunkWriter(tmp_path, "weight", max_bytes)
    for name, tensor in given.items():
        writer.add(name, tensor)
    writer.write()
    written = [load_file(f) for f in sorted(tmp_path.iterdir())]
    assert [len(w) for w in written] == files
    assert [f.name for f in sorted(tmp_path.iterdir())] == [f"weight-{i:05d}.safetensors" for i in range(len(files))]
    merged = {name: value for w in written for name, value in w.items()}
    assert merged.keys() == given.keys() and all(torch.equal(merged[n], given[n]) for n in given)
    root = tmp_path.with_name(tmp_path.name + "-published")
    root.mkdir()
    published = publish(root, tmp_path, 1)
    # A file that the manifest does not name is not read, whatever its name says.
    save_file({"smuggled": torch.zeros(1)}, published / "weight-99999.safetensors")
    assert {n: shape for n, (_, shape) in _index(published, "weight").items()} == {n: tuple(t.shape) for n, t in given.items()}


def test_k4_a_tensor_is_copied_when_it_is_added(tmp_path):
    writer = _ChunkWriter(tmp_path, "weight", 10**6)
    tensor = torch.ones(3)
    writer.add("a", tensor)
    tensor.zero_()
    writer.add("b", torch.ones(3, dtype=torch.float64))
    writer.write()
    loaded = load_file(tmp_path / "weight-00000.safetensors")
    assert loaded["a"].tolist() == [1.0, 1.0, 1.0] and loaded["b"].dtype == torch.float32


def test_names_and_shapes_of_another_model_are_refused():
    engine = SimpleNamespace(parameters=[("a", torch.zeros(2, 3)), ("b", torch.zeros(4))])
    _check_names({"a": ("f", (2, 3)), "b": ("f", (4,))}, engine, "weight")
    for index, words in (
        ({"a": ("f", (2, 3))}, r"weight: the checkpoint lacks \['b'\]"),
        ({"a": ("f", (2, 3)), "b": ("f", (4,)), "c": ("f", (1,))}, r"unknown \['c'\]"),
        ({"a": ("f", (3, 2)), "b": ("f", (4,))}, r"weight/a has shape \(3, 2\) in the checkpoint and \(2, 3\) in the model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            _check_names(index, engine, "weight")
