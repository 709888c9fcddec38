"""The labellers on small made-up text: what they learn, that they are pure functions, and their schemas."""

import json

import numpy as np
import pytest
import scipy.sparse
from label_support import SUBJECTS, natural

from mads.data.documents import Document
from mads.data.schema import DataError
from mads.label.corruption import corrupt, repeat_line, shuffle_letters, shuffle_words
from mads.label.domain import DomainLabeller
from mads.label.quality import LABELS, QualityLabeller, bins_of
from mads.label.sampling import choose
from mads.label.topic import TopicLabeller
from mads.label.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def quality():
    labeller = QualityLabeller(seed=1, columns=1 << 14)
    labeller.fit(natural(300))
    return labeller


@pytest.fixture(scope="module")
def topic():
    labeller = TopicLabeller(topics=4, seed=1, dimensions=10)
    labeller.fit(natural(300))
    return labeller


def test_unseen_worsened_text_scores_below_unseen_natural_text(quality):
    fresh = natural(120, seed=9)
    _, good = quality.label(fresh)
    _, bad = quality.label([Document(t, "x", "made", 1) for t in corrupt(fresh, seed=5)])
    assert np.mean(good[:, None] > bad[None, :]) > 0.95  # the area under the ROC curve
    assert np.median(bad) < 1.0


def test_no_bin_is_empty_on_text_like_the_sample_and_bins_fit_the_scores(quality):
    codes, scores = quality.label(natural(400, seed=11))
    assert codes.dtype == np.uint16 and scores.dtype == np.float32
    assert (np.bincount(codes, minlength=5) > 0).all() and scores.min() >= 0 and scores.max() <= 5
    assert (codes == np.digitize(scores, [1, 2, 3, 4])).all()
    shares = np.bincount(quality.label(natural(300))[0], minlength=5) / 300
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.4, 0.2, 0.1], atol=0.02)  # the fit sample itself


def test_a_score_of_exactly_five_is_in_the_last_bin():
    assert bins_of(np.array([0, 0.999, 1, 2, 3.5, 4, 5], dtype=np.float32)).tolist() == [0, 0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("kind", ["quality", "topic"])
def test_labels_do_not_depend_on_order_company_or_order_of_the_fit(kind, request):
    labeller = request.getfixturevalue(kind)
    documents = natural(80, seed=3) + [Document(t, "x", "odd", 1) for t in ("", " ", "word", "{}" * 50, "a " * 3000)]
    codes, values = labeller.label(documents)
    order = np.random.default_rng(0).permutation(len(documents))
    shuffled_codes, shuffled_values = labeller.label([documents[i] for i in order])
    single = [labeller.label([d]) for d in documents]
    again = QualityLabeller(seed=1, columns=1 << 14) if kind == "quality" else TopicLabeller(topics=4, seed=1, dimensions=10)
    again.fit(natural(300)[::-1])
    assert (codes[order] == shuffled_codes).all() and (codes == [c[0] for c, _ in single]).all()
    assert (again.label(documents)[0] == codes).all() and again.schema() == labeller.schema()
    if values is not None:
        assert (values[order] == shuffled_values).all() and (values == [v[0] for _, v in single]).all()
        assert (again.label(documents)[1] == values).all()


def test_topics_find_the_subjects_and_are_named_after_them(topic):
    documents = natural(200, seed=4)
    codes, values = topic.label(documents)
    assert values is None and codes.dtype == np.uint16
    by_subject = {s: {int(c) for c, d in zip(codes, documents) if d.domain == s} for s in SUBJECTS}
    assert all(len(found) == 1 for found in by_subject.values()) and len(set.union(*by_subject.values())) == 4
    for subject, found in by_subject.items():
        assert set(topic.schema().labels[found.pop()].split("-")) <= set(SUBJECTS[subject])


def test_topic_names_are_unique_even_for_equal_clusters():
    vocabulary = Vocabulary(["alpha", "beta", "gamma", "delta"], np.ones(4))
    # six empty clusters that nothing tells apart, and only four words
    names = vocabulary.name_clusters(scipy.sparse.csr_matrix((5, 4)), np.full(5, -1), np.zeros((4, 6)))
    assert names[:2] == ("alpha-beta-gamma", "alpha-beta-gamma-delta") and len(set(names)) == 6


def test_domain_labels_are_the_sorted_domains():
    labeller = DomainLabeller()
    labeller.fit([Document("t", d, "f", 1) for d in ("news", "code", "news")])
    codes, values = labeller.label([Document("t", d, "f", 1) for d in ("news", "code")])
    assert codes.tolist() == [1, 0] and codes.dtype == np.uint16 and values is None
    assert labeller.schema().labels == ("code", "news") and not labeller.schema().continuous
    with pytest.raises(DataError, match="'books'.*f:7.*code, news"):
        labeller.label([Document("t", "news", "f", 1), Document("t", "books", "f", 7)])
    with pytest.raises(DataError, match="0 documents"):
        DomainLabeller().fit([])


def test_schemas_are_json_and_name_the_settings(quality, topic):
    schema = quality.schema()
    assert schema.labels == LABELS and schema.continuous and schema.provenance["seed"] == 1
    assert schema.provenance["calibration"]["quantiles"] == [0.0, 0.1, 0.3, 0.7, 0.9, 1.0]
    for found in (schema, topic.schema()):
        assert json.loads(json.dumps(found.provenance)) == found.provenance


@pytest.mark.parametrize("labeller", [QualityLabeller(), TopicLabeller(), DomainLabeller()])
def test_labelling_before_fitting_is_an_error(labeller):
    with pytest.raises(RuntimeError, match="before fit"):
        labeller.label(natural(1))


def test_too_little_text_to_learn_from_is_an_error():
    with pytest.raises(DataError, match="at least 20.*got 0 of 5"):
        QualityLabeller().fit([Document(f"{i}", "d", "f", i) for i in range(5)])
    with pytest.raises(DataError, match="too few for 13 topics"):
        TopicLabeller().fit(natural(10))
    with pytest.raises(DataError, match="topics=1"):
        TopicLabeller(topics=1)
    with pytest.raises(DataError, match="columns=1000"):
        QualityLabeller(columns=1000)


def test_empty_calls_give_empty_columns(quality, topic):
    assert [len(x) for x in quality.label([])] == [0, 0] and len(topic.label([])[0]) == 0


def test_corruption_keeps_what_it_should_and_is_a_function_of_text_and_seed():
    rng = np.random.default_rng(0)
    text = natural(1)[0].text
    assert sorted(shuffle_words(text, rng).split()) == sorted(text.split()) and shuffle_words(text, rng) != text
    assert [len(line.split()) for line in shuffle_words(text, rng).split("\n")] == [
        len(line.split()) for line in text.split("\n")
    ]
    scrambled = shuffle_letters(text, rng)
    assert [sorted(w) for w in scrambled.split(" ")] == [sorted(w) for w in text.split(" ")] and scrambled != text
    repeated = repeat_line(text, rng)
    assert len(set(repeated.split("\n"))) == 1 and repeated.split("\n")[0] in text.split("\n")
    assert repeat_line(" ", rng) == " " and shuffle_words("", rng) == "" and shuffle_letters("", rng) == ""
    documents = natural(30)
    worse = corrupt(documents, seed=2)
    assert corrupt(documents[::-1], seed=2) == worse[::-1] and corrupt(documents, seed=3) != worse


def test_the_sample_is_chosen_by_content():
    documents = natural(50)
    chosen = choose(documents, 10, seed=0, stream="test")
    assert len(chosen) == 10 and chosen == choose(documents[::-1], 10, seed=0, stream="test")
    assert chosen != choose(documents, 10, seed=1, stream="test")
