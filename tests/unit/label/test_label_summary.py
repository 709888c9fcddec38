"""What `mads label` shows: counts against plain loops, examples that have the label, and a page that stands alone."""

import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from label_support import natural
from prepared_support import write_prepared

from mads.cli import main
from mads.data.pool import Pool
from mads.label.ngram import NGramPerplexity
from mads.label.relabel import label_prepared
from mads.label.summary import EXAMPLES, as_text, summarize
from mads.report.bars import histogram
from mads.report.labels import render

NASTY = "<script>alert('x')</script> & \"quoted\" "


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "data"
    documents = write_prepared(path, [NASTY + d.text for d in natural(120, seed=2)])
    label_prepared(path, {"perplexity": NGramPerplexity(columns=1 << 12, bins=3)}, progress=lambda line: None)
    return path, documents


def test_counts_are_those_of_a_plain_loop(labelled):
    summary, pool = summarize(labelled[0]), Pool.open(labelled[0])
    for attribute in summary.attributes:
        name = attribute.schema.name
        samples, tokens, documents, place = Counter(), Counter(), Counter(), 0
        for code, length in zip(pool.codes(name)[:].tolist(), pool.lengths[:].tolist()):
            samples[code] += 1
            tokens[code] += length
        for reader in pool.readers:
            for first in reader.documents[:-1].tolist():
                documents[int(pool.codes(name)[place + first])] += 1
            place += len(reader)
        for code, counts in enumerate(attribute.labels):
            assert (counts.documents, counts.samples, counts.tokens) == (documents[code], samples[code], tokens[code])
    edges, bins = summary.attributes[1].histogram
    assert np.array_equal(bins, np.histogram(pool.values("perplexity")[:], edges)[0]) and bins.sum() == len(pool)
    pairs = summary.pairs["domain", "perplexity"]
    for a in range(4):
        for b in range(3):
            both = (pool.codes("domain")[:] == a) & (pool.codes("perplexity")[:] == b)
            assert pairs[a, b] == pool.lengths[:][both].sum()


def test_examples_have_the_label_that_they_stand_under(labelled):
    path, documents = labelled
    subject = {" ".join(d.text.split())[:100]: d.domain for d in documents[:100]}
    for counts in summarize(path).attributes[0].labels:
        assert len(counts.examples) == EXAMPLES
        assert {subject[text[:100]] for text, _ in counts.examples} == {counts.label}


def test_the_page_stands_alone_and_shows_text_as_text(labelled):
    page = render(summarize(labelled[0]))
    HTMLParser().feed(page)
    assert "<script" not in page and "&lt;script&gt;alert(&#x27;x&#x27;)" in page
    assert not re.search(r"(src|href)=.(?!#|data:)", page) and "http" not in page
    assert page.count("<svg") >= 3 and "perplexity, value of a sample" in page and "domain by perplexity" in page


def test_the_command_shows_a_table_and_writes_the_page(labelled, tmp_path, capsys):
    directory = tmp_path / "data"
    shutil.copytree(labelled[0], directory)
    assert main(["label", "data=prepared", f"data.dir={directory}"]) == 0
    said = capsys.readouterr().out
    assert as_text(summarize(directory)) in said and re.search(r"space +\d+ +\d+ +[\d,]+ +\d+\.\d%", said)
    assert (directory / "labels.html").read_text() == render(summarize(directory))
    Pool.open(directory)  # the page is no part of the data
    elsewhere = tmp_path / "page.html"
    assert main(["label", "data=prepared", f"data.dir={directory}", "--remove", "perplexity", "--page", str(elsewhere)]) == 0
    assert Pool.open(directory).attributes == ("domain",) and "perplexity" not in elsewhere.read_text()


def test_the_command_refuses_what_is_not_prepared(tmp_path, capsys):
    assert main(["label", "data=demo"]) == 2
    assert "mads label data=prepared data.dir=DIR" in capsys.readouterr().err
    assert main(["label", "data=prepared", f"data.dir={tmp_path}"]) == 2
    assert "no manifest.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_tallest_bar_of_a_histogram_fills_it():
    drawn = histogram("values", [0, 1, 2, 3], [5, 10, 0], "value")
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', drawn)]
    assert heights == pytest.approx([65, 130, 0]) and "1 to 2: 10" in drawn
