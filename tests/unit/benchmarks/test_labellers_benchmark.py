"""The benchmark of labellers: what it calls an area under the curve is one, within domains, and sources stay out of documents."""

import gzip
import json

import numpy as np
import pytest
from label_support import natural

from benchmarks.labellers import against_destroyed, clusters, read
from mads.label.domain import DomainLabeller


def test_sources_stay_out_of_the_documents(tmp_path):
    rows = [{"text": d.text, "domain": d.domain, "source": f"group {i}"} for i, d in enumerate(natural(20))]
    for name, own in (("forum", rows[:10]), ("books", rows[10:])):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in own))
    documents, sources = read(tmp_path)
    expected = {row["text"]: row["source"] if i < 10 else "" for i, row in enumerate(rows)}
    assert {d.text: s for d, s in zip(documents, sources)} == expected and all(d.fields == {} for d in documents)


def test_the_area_is_the_share_of_pairs_of_one_domain_in_the_right_order(capsys):
    from dataclasses import replace

    rng = np.random.default_rng(0)
    held = [replace(d, origin="destroyed.jsonl.gz" if i % 4 == 0 else "books.jsonl.gz") for i, d in enumerate(natural(80))]
    destroyed = np.array([d.origin.startswith("destroyed") for d in held])
    sources = np.array([("shuffled" if i % 8 else "repeated") if bad else "" for i, bad in enumerate(destroyed)])
    value = rng.normal(size=80) - destroyed
    against_destroyed("x", value, held, sources)
    won = []
    for i in np.flatnonzero(destroyed):
        won.append(np.mean([value[j] > value[i] for j in range(80) if not destroyed[j] and held[j].domain == held[i].domain]))
    assert float(capsys.readouterr().out.split("all ")[1].split()[0]) == pytest.approx(np.mean(won), abs=1e-4)


def test_clusters_that_are_the_classes_agree_in_full(capsys):
    documents = natural(60)
    truth = np.array([d.domain for d in documents])
    clusters("the domain itself", DomainLabeller(), documents, documents, truth, truth)
    assert "NMI 1.000, ARI 1.000, purity 1.000" in capsys.readouterr().out
