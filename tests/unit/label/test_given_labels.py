"""Attributes that the records carry: bins against a plain loop, codes, and what is refused by name."""

import numpy as np
import pytest

from mads.data.documents import Document
from mads.data.schema import DataError
from mads.label.given import GivenLabel, GivenScore


def with_fields(*fields):
    return [Document("some text", "web", "a.jsonl", i + 1, f) for i, f in enumerate(fields)]


def scored(*values):
    return with_fields(*({"score": v} for v in values))


def check_that_the_last_bin_is_closed():
    labeller = GivenScore("score", [0, 1, 2, 3, 4, 5])
    codes, values = labeller.label(scored(0, 0.99, 1.0, 3.999, 4, 4.99, 5.0, 5))
    assert codes.tolist() == [0, 0, 1, 3, 4, 4, 4, 4] and codes.dtype == np.uint16
    assert values.dtype == np.float32 and values.tolist() == pytest.approx([0, 0.99, 1, 3.999, 4, 4.99, 5, 5])
    assert labeller.schema().labels == ("[0,1)", "[1,2)", "[2,3)", "[3,4)", "[4,5]") and labeller.schema().continuous


def test_the_last_bin_is_closed():
    check_that_the_last_bin_is_closed()


def test_bins_are_those_of_a_plain_loop():
    edges = [-1.5, 0.1, 0.7, 2.0]
    values = [*edges, *np.random.default_rng(0).uniform(-1.5, 2, 500).tolist()]
    codes, _ = GivenScore("score", edges, ["low", "middle", "high"]).label(scored(*values))
    expected = [next(i for i in range(3) if v < edges[i + 1] or i == 2) for v in values]
    assert codes.tolist() == expected


@pytest.mark.parametrize(
    "value, complaint",
    [(5.01, "outside"), (-0.1, "outside"), (float("nan"), "finite"), (float("inf"), "finite"), ("x", "finite"), (True, "finite")],
)
def test_a_score_that_fits_no_bin_names_the_document(value, complaint):
    with pytest.raises(DataError, match=f"a.jsonl:2.*score.*{complaint}"):
        GivenScore("score", [0, 5]).label(scored(1, value))


def test_a_number_in_a_string_counts():
    assert GivenScore("score", [0, 5]).label(scored("3.5", "5"))[1].tolist() == [3.5, 5.0]


@pytest.mark.parametrize("field", [{}, {"score": None}, {"other": 1}])
def test_a_missing_field_names_the_document(field):
    for labeller in (GivenScore("score", [0, 5]), GivenLabel("score", ["a"])):
        with pytest.raises(DataError, match="a.jsonl:1 has no field 'score'"):
            labeller.label(with_fields(field))


@pytest.mark.parametrize("edges, labels", [([1], None), ([0, 0], None), ([0, float("inf")], None), ([0, 1, 2], ["one"])])
def test_bins_that_are_none_are_refused(edges, labels):
    with pytest.raises(DataError):
        GivenScore("score", edges, labels)


def test_labels_are_the_sorted_values_of_the_sample():
    labeller = GivenLabel("topic")
    labeller.fit(with_fields(*({"topic": t} for t in ("wiki", "book", "wiki", "code"))))
    assert labeller.schema().labels == ("book", "code", "wiki")
    assert labeller.label(with_fields({"topic": "wiki"}, {"topic": "book"}))[0].tolist() == [2, 0]
    with pytest.raises(DataError, match="a.jsonl:1: field 'topic' is 'news'.*book, code, wiki; list all values in names"):
        labeller.label(with_fields({"topic": "news"}))
    assert labeller.fields == labeller.categories == ("topic",)


def test_integers_are_codes_where_names_are_given_and_labels_in_numeric_order_where_not():
    named = GivenLabel("domain", ["c4", "book"])
    assert named.label(with_fields({"domain": 1}, {"domain": "c4"}, {"domain": 0.0}))[0].tolist() == [1, 0, 0]
    assert named.categories == ()
    for value in (2, -1, "web"):
        with pytest.raises(DataError, match="a.jsonl:1"):
            named.label(with_fields({"domain": value}))
    counted = GivenLabel("domain")
    counted.fit(with_fields(*({"domain": d} for d in (10, 9, 2))))
    assert counted.schema().labels == ("2", "9", "10")
    assert counted.label(with_fields({"domain": 10}))[0].tolist() == [2]


@pytest.mark.parametrize("value", [1.5, True, [1], float("nan")])
def test_a_value_that_is_no_label_is_refused(value):
    with pytest.raises(DataError, match="neither a string nor an integer"):
        GivenLabel("topic", ["a", "b"]).label(with_fields({"topic": value}))


def test_names_may_not_repeat():
    with pytest.raises(DataError, match="2 labels, 1 of them different"):
        GivenLabel("topic", ["a", "a"])
