"""data=slimpajama_labeled by the command: the published fields become attributes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mads.cli import main
from mads.data.pool import Pool
from mads.data.schema import Manifest

WORDS = "rain fell softly over the old harbour while boats turned and import numpy return self value budget vote law 7 42".split()
TOPICS = ("activity", "education", "entertainment", "finance", "health", "business and industrial", "infrastructure")


def rows(count=120):
    rng = np.random.default_rng(0)
    return [
        {
            "text": " ".join(rng.choice(WORDS, rng.integers(30, 60))) + f" #{i}",
            "attr-fineweb-edu": [0.0, 5.0, 4.999, 1.0][i] if i < 4 else float(rng.random() * 5),
            "domain": ("arxiv", "c4", "github")[i % 3],
            "attr-cc_en_topic": int(i % 13),
            "epoch": int(i % 2),
        }
        for i in range(count)
    ]


def test_published_labels_become_attributes_and_bad_ones_are_counted(tmp_path, capsys):
    found = rows()
    bad = [{**found[5], field: value} for field, value in (("attr-fineweb-edu", None), ("attr-cc_en_topic", [3]))]
    bad.append({key: value for key, value in found[6].items() if key != "epoch"})
    nan = json.dumps({**found[7], "attr-fineweb-edu": float("nan")})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*found[:60], *bad]) + nan + "\n")
    pq.write_table(pa.Table.from_pylist(found[60:]), tmp_path / "in/b.parquet")
    overrides = [
        "data.seq_length=32",
        "data.min_sample_tokens=8",
        "model.vocab_size=300",
        "data.heldout_fraction=0.1",
    ]
    command = ["prepare", "--workers", "1", "data=slimpajama_labeled", f"data.paths=[{tmp_path}/in]", f"data.dir={tmp_path}/out"]
    assert main([*command, *overrides]) == 0, capsys.readouterr().err
    manifest = Manifest.read(tmp_path / "out", verify=True)
    assert manifest.rejected == {"missing field": 1, "wrong type": 3}
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [("attr-fineweb-edu" in r["detail"], "null" in r["detail"]) for r in listed if r["reason"] == "wrong type"] == [
        (True, True),
        (False, False),
        (True, False),
    ]
    pool = Pool.open(tmp_path / "out", "train")
    assert pool.attributes == ("quality", "domain", "topic", "epoch")
    assert pool.labels("topic")[:7] == TOPICS and len(pool.labels("topic")) == 13
    assert pool.labels("domain") == ("arxiv", "c4", "github") and pool.labels("epoch") == ("0", "1")
    assert pool.labels("quality")[4] == "[4,5]"
    held = Pool.open(tmp_path / "out", "heldout")
    values = np.concatenate([np.asarray(p.values("quality")) for p in (pool, held)])
    codes = np.concatenate([np.asarray(p.codes("quality")) for p in (pool, held)])
    assert (
        set(codes[values == 5.0]) == {4} and set(codes[values == np.float32(4.999)]) == {4} and set(codes[values == 1.0]) == {1}
    )
    assert {np.float32(r["attr-fineweb-edu"]) for r in found} == set(values)
