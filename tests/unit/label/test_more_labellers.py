"""Good text against the pool, language, and domains by path: what they learn, that they are pure, what they refuse."""

import json

import numpy as np
import pytest
from label_support import SUBJECTS, natural
from test_labeller_state import same

from mads.data.documents import Document
from mads.data.schema import DataError
from mads.label.base import load_labeller, save_labeller
from mads.label.domain import PathDomain
from mads.label.language import LanguageLabeller
from mads.label.linear import GoodAgainstWeb

SENTENCES = {
    "en": "The committee will meet again on Thursday morning to discuss the report on the harbour.",
    "de": "Der Ausschuss trifft sich am Donnerstag wieder, um über den Bericht zum Hafen zu sprechen.",
    "fr": "La commission se réunira de nouveau jeudi matin pour discuter du rapport sur le port.",
    "es": "La comisión se reunirá de nuevo el jueves por la mañana para hablar del informe sobre el puerto.",
    "ru": "Комиссия снова соберётся в четверг утром, чтобы обсудить отчёт о порте.",
    "zh": "委员会将于星期四上午再次开会，讨论有关港口的报告，因为还有一些问题没有解决。",
}


def spoken(*languages):
    return [Document(SENTENCES[x], "web", "made", i + 1) for i, x in enumerate(languages)]


def bitwise_alone(labeller, documents):
    together = labeller.label(documents)
    alone = [labeller.label([d]) for d in reversed(documents)][::-1]
    codes = np.concatenate([a[0] for a in alone])
    values = None if together[1] is None else np.concatenate([a[1] for a in alone])
    return same(together, (codes, values))


def restored(labeller, fresh, folder):
    save_labeller(folder / "x.npz", labeller)
    load_labeller(folder / "x.npz", fresh)
    assert fresh.schema() == labeller.schema()
    return fresh


def test_good_domains_score_above_the_rest_on_unseen_documents(tmp_path):
    labeller = GoodAgainstWeb(good_domains=["law", "space"], columns=1 << 14)
    labeller.fit(natural(400))
    unseen = natural(200, seed=9)
    codes, scores = labeller.label(unseen)
    good = np.array([d.domain in ("law", "space") for d in unseen])
    assert np.mean(scores[good][:, None] > scores[~good][None, :]) > 0.95
    learned = labeller.schema().provenance
    assert learned["heldout_accuracy"] > 0.9 and learned["heldout_auc"] > 0.95 and learned["heldout_documents"] > 20
    assert codes.tolist() == [min(int(s), 4) for s in scores] and labeller.reads == ("text", "domain")
    assert bitwise_alone(labeller, unseen[:40])
    fresh = restored(labeller, GoodAgainstWeb(good_domains=["law", "space"], columns=1 << 14), tmp_path)
    assert same(labeller.label(unseen), fresh.label(unseen))


def test_good_text_from_files_and_the_same_text_in_the_pool_is_no_bad_example(tmp_path):
    good = natural(60, seed=3, subjects={"law": SUBJECTS["law"]})
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"body": d.text}) + "\n" for d in good))
    labeller = GoodAgainstWeb(good_paths=[str(tmp_path / "good.jsonl")], text_field="body", columns=1 << 14)
    labeller.fit(natural(200) + good)
    assert labeller.schema().provenance["good_documents"] == 60 and labeller.schema().provenance["web_documents"] == 200
    unseen = natural(200, seed=9)
    law = np.array([d.domain == "law" for d in unseen])
    scores = labeller.label(unseen)[1]
    assert scores[law].mean() > scores[~law].mean() + 0.8
    assert str(tmp_path) not in json.dumps(labeller.schema().provenance)


def test_the_heldout_accuracy_of_what_cannot_be_told_apart_is_a_coin():
    labeller = GoodAgainstWeb(good_domains=["a"], columns=1 << 14)
    labeller.fit([Document(d.text, "ab"[i % 2], "made", i) for i, d in enumerate(natural(1000))])
    assert 0.3 < labeller.schema().provenance["heldout_auc"] < 0.7


def test_good_text_is_needed(tmp_path):
    with pytest.raises(DataError, match="good_paths"):
        GoodAgainstWeb()
    with pytest.raises(DataError, match="0 good ones.*food"):
        GoodAgainstWeb(good_domains=["poetry"]).fit(natural(100))
    with pytest.raises(DataError, match="power of two"):
        GoodAgainstWeb(good_domains=["law"], columns=100)


def test_languages_are_found_and_rare_ones_are_other(tmp_path):
    labeller = LanguageLabeller(min_documents=2)
    labeller.fit(spoken("en", "en", "de", "de", "fr", "ru", "ru"))
    assert labeller.schema().labels == ("de", "en", "ru", "other")
    assert labeller.label(spoken("ru", "en", "fr", "zh", "de"))[0].tolist() == [2, 1, 3, 3, 0]
    assert labeller.schema().provenance["fit_languages"] == {"de": 2, "en": 2, "fr": 1, "ru": 2}
    assert bitwise_alone(labeller, spoken(*SENTENCES))
    fresh = restored(labeller, LanguageLabeller(min_documents=2), tmp_path)
    assert same(labeller.label(spoken(*SENTENCES)), fresh.label(spoken(*SENTENCES)))


def test_languages_may_be_named():
    labeller = LanguageLabeller(languages=["zh", "es"])
    labeller.fit(spoken("en"))
    assert labeller.label(spoken("es", "zh", "en"))[0].tolist() == [0, 1, 2] and labeller.schema().labels == ("es", "zh", "other")
    with pytest.raises(DataError, match="klingon"):
        LanguageLabeller(languages=["klingon"])


def at(*origins):
    return [Document("text", "x", origin, 1) for origin in origins]


def test_the_domain_is_the_part_of_the_path_that_the_pattern_names(tmp_path):
    labeller = PathDomain("(?P<domain>[^/]+)/[^/]+$")
    labeller.fit(at("web/en/a.jsonl", "web/de/b.jsonl", "books/c.txt"))
    assert labeller.schema().labels == ("books", "de", "en")
    assert labeller.label(at("books/z.txt", "new/en/z.jsonl"))[0].tolist() == [0, 2]
    for origin, complaint in (("c.txt", "does not match"), ("fr/c.txt", "gives 'fr'")):
        with pytest.raises(DataError, match=f"{origin} {complaint}"):
            labeller.label(at(origin))
    fresh = restored(labeller, PathDomain("(?P<domain>[^/]+)/[^/]+$"), tmp_path)
    assert fresh.label(at("web/de/x"))[0].tolist() == [1]
    assert fresh.new_labels(at("a/zu/x", "a/af/x", "a/de/x")) == ["af", "zu"]
    fresh.take_labels(("books", "de", "en", "af", "zu"))
    assert fresh.label(at("a/zu/x", "a/de/x"))[0].tolist() == [4, 1]


def test_paths_without_a_label_may_have_one():
    labeller = PathDomain("^(?P<domain>[a-z]+)/", names=["web", "books"], other="rest")
    labeller.fit(at("somewhere"))
    assert labeller.schema().labels == ("web", "books", "rest")
    assert labeller.label(at("books/a", "code/a", "b"))[0].tolist() == [1, 2, 2]
    assert labeller.new_labels(at("code/a")) == []


@pytest.mark.parametrize("pattern", ["(unclosed", "no group"])
def test_a_pattern_that_names_no_domain_is_refused(pattern):
    with pytest.raises(DataError, match="pattern="):
        PathDomain(pattern)
    with pytest.raises(DataError, match="matches no path"):
        PathDomain("^(?P<domain>web)/").fit(at("books/a"))
