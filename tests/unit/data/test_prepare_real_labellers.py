"""Preparation end to end with the labellers that ship: real text out of the running Python's own library."""

import ast
import hashlib
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from mads.data.cutting import cut_text
from mads.data.documents import JsonlSource
from mads.data.pool import Pool
from mads.data.prepare import prepare
from mads.data.settings import PrepareSettings
from mads.label.domain import DomainLabeller
from mads.label.quality import QualityLabeller
from mads.label.topic import TopicLabeller

CODE, PROSE = 150, 100  # documents of the two domains


def library_text():
    """(code, prose): pieces of source files, and the docstrings inside them."""
    code, prose = [], []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")):
        source = path.read_text(encoding="utf-8")
        code += cut_text(source[:20_000], 2000)
        nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Module))]
        prose += [doc for n in nodes if (doc := ast.get_docstring(n)) and len(doc) > 150]
    return code[:CODE], prose[:PROSE]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    texts = zip(("code", "prose"), library_text())
    rows = [json.dumps({"text": text, "domain": domain}) + "\n" for domain, pieces in texts for text in pieces]
    (folder / "corpus.jsonl").write_text("".join(rows))
    settings = PrepareSettings(600, seq_length=64, min_sample_tokens=8, heldout_fraction=0.05, max_rejected_fraction=0.1)

    def run(name):
        labellers = {"quality": QualityLabeller(), "domain": DomainLabeller(), "topic": TopicLabeller(topics=4)}
        prepare(folder / name, JsonlSource([str(folder / "corpus.jsonl")]), labellers, None, settings, progress=[].append)
        return folder / name

    return run("a"), run("b")


def test_real_labellers_give_the_same_bytes_twice(prepared):
    one, two = prepared
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) >= 10
    for name in files:
        assert hashlib.sha256((one / name).read_bytes()).digest() == hashlib.sha256((two / name).read_bytes()).digest(), name


def test_every_attribute_covers_every_sample_of_both_parts(prepared):
    directory, _ = prepared
    for part in ("train", "heldout"):
        pool = Pool.open(directory, part)
        assert set(pool.attributes) == {"quality", "domain", "topic"}
        for name in pool.attributes:
            assert len(pool.codes(name)) == len(pool) and np.max(pool.codes(name)) < len(pool.labels(name))
        assert np.isfinite(pool.values("quality")).all()
        assert pool.labels("domain") == ("code", "prose") and len(pool.labels("topic")) == 4
    train = Pool.open(directory, "train")
    assert all(np.bincount(train.codes(name)).max() < len(train) for name in train.attributes)  # no attribute is constant
    documents = sum(train.manifest.parts[part]["documents"] for part in ("train", "heldout"))
    assert documents + sum(train.manifest.rejected.values()) == CODE + PROSE
