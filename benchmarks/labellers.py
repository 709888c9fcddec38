"""How good are the labellers, and how fast? Run on the lab pool: python -m benchmarks.labellers FOLDER [--sentences MODEL].

FOLDER holds *.jsonl.gz with the fields text, domain and source. `source` is what the labels are compared with (the newsgroup of a
post, how a text was destroyed); no labeller sees it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from mads.data.cutting import batches
from mads.data.documents import Document
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.label.domain import DomainLabeller
from mads.label.language import LanguageLabeller
from mads.label.linear import GoodAgainstWeb
from mads.label.ngram import NGramPerplexity
from mads.label.quality import QualityLabeller
from mads.label.sampling import content_ids
from mads.label.topic import TopicLabeller
from mads.label.vocabulary import Vocabulary
from mads.label.words import split_words
from mads.noise import hash64

GOOD = ["books", "news", "speeches"]
# Article 1 of the Universal Declaration of Human Rights, first sentence or both.
LANGUAGES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
    "and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di "
    "coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência,"
    " devem agir uns para com os outros em espírito de fraternidade.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en "
    "geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med förnuft och samvete och "
    "bör handla gentemot varandra i en anda av broderskap.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i "
    "sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
}


def read(folder: Path) -> tuple[list[Document], np.ndarray]:
    """Documents without their `source`, and the source of each ("" where the file is not about it), in the order of a hash."""
    documents, sources = [], []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for i, line in enumerate(file):
                row = json.loads(line)
                documents.append(Document(row["text"], row["domain"], path.name, i + 1))
                sources.append(row["source"] if path.name.split(".")[0] in ("forum", "destroyed") else "")
    order = np.argsort(hash64(0, "labellers-benchmark", 0, content_ids(documents)), kind="stable")
    return [documents[i] for i in order], np.array(sources)[order]


def megabytes(documents: list[Document]) -> float:
    return sum(len(d.text.encode()) for d in documents) / 1e6


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Processor time of one thread, the least of several."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def clusters(name: str, labeller, fit, held, fit_truth, truth) -> None:
    """Agreement of clusters with the true classes, on documents that were not clustered."""
    labeller.fit(fit)
    seen, codes = labeller.label(fit)[0], labeller.label(held)[0]
    majority = {c: max(set(fit_truth[seen == c]), key=list(fit_truth[seen == c]).count) for c in set(seen.tolist())}
    guess = np.array([majority.get(c, "") for c in codes.tolist()])
    nmi, ari = normalized_mutual_info_score(truth, codes), adjusted_rand_score(truth, codes)
    print(
        f"topic     {name}: NMI {nmi:.3f}, ARI {ari:.3f}, purity {np.mean(guess == truth):.3f}, {len(held)} held-out posts",
        flush=True,
    )
    print("          " + ", ".join(labeller.schema().labels[:8]), flush=True)


def probe(fit, held, fit_truth, truth) -> None:
    """What a linear model finds that is given the true classes: the ceiling of what words tell."""
    parts = [split_words([d.text for d in fit][part]) for part in batches([d.text for d in fit])]
    vocabulary = Vocabulary.learn(parts, 20_000, 0.3)
    features = [vocabulary.tfidf(split_words([d.text for d in group])) for group in (fit, held)]
    model = LogisticRegression(C=10.0, max_iter=200).fit(features[0], fit_truth)
    guess = model.predict(features[1])
    nmi, ari = normalized_mutual_info_score(truth, guess), adjusted_rand_score(truth, guess)
    print(
        f"topic     linear model with the true classes: NMI {nmi:.3f}, ARI {ari:.3f}, accuracy {np.mean(guess == truth):.3f}",
        flush=True,
    )


def against_destroyed(name: str, value: np.ndarray, held: list[Document], sources: np.ndarray) -> None:
    """Area under the curve of telling intact text (larger value) from destroyed text of the same domain: the mean over domains,
    weighted by their destroyed documents. Over all domains at once it would be about the domains, which destroyed text has in
    other shares."""
    domains = np.array([d.domain for d in held])
    destroyed = np.array([d.origin.startswith("destroyed") for d in held])
    print(f"destroyed {name}: ", end="")
    for kind, chosen in (("all", destroyed), ("shuffled", sources == "shuffled"), ("repeated", sources == "repeated")):
        total = 0.0
        for domain in np.unique(domains[chosen]):
            both = (~destroyed | chosen) & (domains == domain)
            total += roc_auc_score(~chosen[both], value[both]) * (chosen & both).sum()
        print(f"{kind} {total / chosen.sum():.4f} ({int(chosen.sum())})  ", end="")
    print(f"against {int((~destroyed).sum())} intact", flush=True)


def agreement(fit, held, fit_sources, sources, sentences: str | None, posts: int) -> None:
    forum = np.array([d.origin.startswith("forum") for d in fit]), np.array([d.origin.startswith("forum") for d in held])
    fit_posts, held_posts = ([d for d, own in zip(group, mask) if own] for group, mask in zip((fit, held), forum))
    truths = fit_sources[forum[0]], sources[forum[1]]
    clusters("20 clusters of TF-IDF + SVD", TopicLabeller(topics=20), fit_posts, held_posts, *truths)
    probe(fit_posts, held_posts, *truths)
    if sentences:
        from mads.label.embedding import EmbeddingTopicLabeller

        part = [group[:posts] for group in (fit_posts, held_posts, *truths)]
        clusters(f"20 clusters of TF-IDF + SVD, {posts} + {posts} posts", TopicLabeller(topics=20), *part)
        labeller = EmbeddingTopicLabeller(sentences, topics=20)
        clusters(f"20 clusters of sentence embeddings, {posts} + {posts} posts", labeller, *part)
        spent = seconds(lambda: labeller.label(held_posts[:200]))
        print(
            f"speed     sentence embeddings: {megabytes(held_posts[:200]) / spent:.3f} MB/s, {200 / spent:.1f} documents/s",
            flush=True,
        )
    domain = DomainLabeller()
    domain.fit(fit)
    right = np.mean([domain.schema().labels[c] == d.domain for c, d in zip(domain.label(held)[0], held)])
    print(f"domain    field: accuracy {right:.3f}", flush=True)
    for name, labeller, sign in (
        ("quality", QualityLabeller(), 1),
        ("n-gram perplexity", NGramPerplexity(), -1),
        ("good against web", GoodAgainstWeb(good_domains=GOOD), 1),
    ):
        labeller.fit(fit)
        against_destroyed(name, sign * labeller.label(held)[1], held, sources)
        if name == "good against web":
            learned, value = labeller.schema().provenance, labeller.label(held)[1]
            good = np.array([d.domain in GOOD for d in held])
            auc = f"AUC {roc_auc_score(good, value):.4f} on {len(held)} held-out documents of this benchmark"
            print(
                f"good      its own held-out accuracy {learned['heldout_accuracy']}, AUC {learned['heldout_auc']}; {auc}",
                flush=True,
            )
    languages = LanguageLabeller(languages=sorted(LANGUAGES))
    languages.fit(fit[:100])
    found = languages.label([Document(text, "x", code, 1) for code, text in LANGUAGES.items()])[0]
    names = languages.schema().labels
    wrong = [f"{code} as {names[c]}" for code, c in zip(LANGUAGES, found) if names[c] != code]
    prose = [d for d in held if d.domain in (*GOOD, "dialogue") and not d.origin.startswith("destroyed")][:1000]
    english = np.mean([names[c] == "en" for c in languages.label(prose)[0]])
    right = f"{len(LANGUAGES) - len(wrong)} of {len(LANGUAGES)} samples {wrong}"
    print(f"language  {right}; {english:.3f} of {len(prose)} English texts", flush=True)


def speed(fit, held, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train_sentencepiece((d.text for d in fit[:2000]), 4096, Path(folder) / "tokenizer.model")
        tokenizer = Tokenizer.open(Path(folder) / "tokenizer.model")
    texts, size = [d.text for d in held], megabytes(held)
    limit = size / seconds(lambda: tokenizer.encode(texts), repeats)
    print(f"speed     SentencePiece, {tokenizer.vocab_size} pieces: {limit:.2f} MB/s", flush=True)
    for labeller in (
        QualityLabeller(),
        TopicLabeller(),
        DomainLabeller(),
        NGramPerplexity(),
        GoodAgainstWeb(good_domains=GOOD),
        LanguageLabeller(),
    ):
        fitting = seconds(lambda labeller=labeller: labeller.fit(fit))
        rate = size / seconds(lambda labeller=labeller: labeller.label(held), repeats)
        name = type(labeller).__name__
        print(f"speed     {name}: {rate:.2f} MB/s ({rate / limit:.1f} x SentencePiece); fit {fitting:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", help="folder of a sentence-embedding model")
    parser.add_argument("--posts", type=int, default=300, help="forum posts to embed for the fit, and as many held out")
    parser.add_argument("--fit", type=int, default=16_000, help="documents to fit on")
    parser.add_argument("--held", type=int, default=8_000, help="held-out documents to measure on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true")
    options = parser.parse_args()
    documents, sources = read(options.folder)
    fit, held = documents[: options.fit], documents[options.fit :][: options.held]
    print(f"{len(fit)} documents to fit ({megabytes(fit):.1f} MB), {len(held)} held out ({megabytes(held):.1f} MB)", flush=True)
    if not options.speed_only:
        fit_sources, held_sources = sources[: len(fit)], sources[options.fit :][: options.held]
        agreement(fit, held, fit_sources, held_sources, options.sentences, options.posts)
    speed(fit[:8000], held[:3000], options.repeats)


if __name__ == "__main__":
    main()
