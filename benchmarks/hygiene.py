"""What duplicate and contamination search find in a corpus, how fast, how right, and against two libraries.

    python -m benchmarks.hygiene CORPUS_FOLDER --tasks FOLDER FOLDER

Run from the repository root; `pip install -e '.[test]' rensa` for the comparison. Speeds are MB of UTF-8 text per second of this
process's CPU time, the fastest of three. The figures: hygiene.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse

from mads.data.documents import Document
from mads.data.files import FilesSource
from mads.data.references import JsonlReferences
from mads.data.rejects import Rejects
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.hygiene.contamination import Contamination
from mads.hygiene.duplicates import exact_duplicates, near_duplicates, similarities, text_keys
from mads.hygiene.minhash import NGRAM, SLOTS, bands, candidate_probability, grams, minima, signatures
from mads.hygiene.words import hash_words, words_of

THRESHOLD = 0.8


def cpu_seconds(work, repeats: int = 3) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def megabytes(texts: list[str]) -> float:
    return sum(len(t.encode()) for t in texts) / 1e6


def speeds(texts: list[str], finder: Contamination) -> None:
    """Each step over the whole corpus, beside SentencePiece."""
    size = megabytes(texts)
    print(f"\n## Speed of one core, {len(texts):,} documents, {size:.1f} MB\n\n| step | MB/s |\n|---|---|")
    for name, work in [
        ("words (`hash_words`)", lambda: hash_words(texts)),
        ("exact keys (`text_keys`)", lambda: text_keys(texts)),
        (f"signatures, {SLOTS} slots (`signatures`)", lambda: signatures(texts)),
        ("contamination (`Contamination.hits`)", lambda: finder.hits(texts)),
    ]:
        print(f"| {name} | {size / cpu_seconds(work):.0f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        train_sentencepiece(iter(texts[:2000]), 4096, path)
        tokenizer, some = Tokenizer.open(path, "sentencepiece"), texts[:: max(1, len(texts) // 1000)]
        print(f"| SentencePiece, 4,096 ids | {megabytes(some) / cpu_seconds(lambda: tokenizer.encode(some)):.1f} |", flush=True)


def libraries(texts: list[str]) -> None:
    """Signatures of the same documents by datasketch and rensa."""
    import datasketch
    import rensa

    texts = texts[:: max(1, len(texts) // 3000)]
    size = megabytes(texts)
    hashes, offsets = grams(texts)
    sets = [hashes[a:b] for a, b in zip(offsets, offsets[1:])]
    wide, rows = hashes.astype(np.uint64), offsets.astype(np.uint64)

    def shingles(text: str) -> list[bytes]:
        words = words_of(text)
        return [" ".join(words[i : i + NGRAM]).encode() for i in range(max(1, len(words) - NGRAM + 1))]

    def by_datasketch(values, hashing):
        sketch = datasketch.MinHash(SLOTS, seed=1, **hashing)
        sketch.update_batch(values)
        return sketch.hashvalues

    flat, from_sets = rensa.RMinHash.digest_matrix_from_flat_token_hashes, rensa.RMinHash.digest_matrix_from_token_sets
    print(f"\n## Signatures of {len(texts):,} documents, {size:.1f} MB, {SLOTS} slots\n")
    print("| | from text, MB/s | from hashes, MB/s |\n|---|---|---|")
    ours = size / cpu_seconds(lambda: signatures(texts)), size / cpu_seconds(lambda: minima(hashes, offsets))
    print(f"| mads.hygiene | {ours[0]:.0f} | {ours[1]:.0f} |", flush=True)
    seen = (
        size / cpu_seconds(lambda: [by_datasketch(shingles(t), {}) for t in texts], 1),
        size / cpu_seconds(lambda: [by_datasketch(s, {"hashfunc": int}) for s in sets], 1),
    )
    print(f"| datasketch {datasketch.__version__} | {seen[0]:.1f} | {seen[1]:.1f} |", flush=True)
    seen = (
        size / cpu_seconds(lambda: from_sets([shingles(t) for t in texts], SLOTS, 1).to_rows()),
        size / cpu_seconds(lambda: np.array(flat(wide, rows, SLOTS, 1).to_rows(), np.uint32)),
    )
    print(f"| rensa | {seen[0]:.1f} | {seen[1]:.0f} |", flush=True)
    same = all(np.array_equal(by_datasketch(s, {"hashfunc": int}), row) for s, row in zip(sets[:300], minima(hashes, offsets)))
    print(f"\nThe first 300 signatures equal those of datasketch: {same}")


def exact_pairs(texts: list[str], least: float) -> dict[tuple[int, int], float]:
    """Jaccard similarity of every pair of documents that has at least `least`, from the sets of their grams' 32-bit hashes."""
    hashes, offsets = grams(texts)
    document = np.repeat(np.arange(len(texts)), np.diff(offsets))
    keys = np.unique(document.astype(np.uint64) << np.uint64(32) | hashes)
    rows, gram = (keys >> np.uint64(32)).astype(np.int64), keys & np.uint64(0xFFFFFFFF)
    column = np.unique(gram, return_inverse=True)[1]
    matrix = scipy.sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, column)), shape=(len(texts), column.max() + 1))
    sizes, transposed, found = np.diff(matrix.indptr), matrix.T.tocsr(), {}
    for low in range(0, len(texts), 500):
        shared = (matrix[low : low + 500] @ transposed).tocoo()
        a, b = shared.row + low, shared.col
        jaccard = shared.data / (sizes[a] + sizes[b] - shared.data)
        for i in np.flatnonzero((jaccard >= least) & (a < b)):
            found[int(a[i]), int(b[i])] = float(jaccard[i])
    return found


def linked(found: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share a band, and are similar enough besides) of pairs of rows; bool each."""
    count, rows = bands(THRESHOLD)
    equal = found[left] == found[right]
    candidate = np.any([equal[:, k * rows : (k + 1) * rows].all(axis=1) for k in range(count)], axis=0)
    return candidate, candidate & (equal.sum(axis=1) >= THRESHOLD * SLOTS)


def curve(texts: list[str], pairs: int = 30_000) -> None:
    """How often pairs of a known similarity are found: documents of the corpus and copies with changed words."""
    rng, both, truth = random.Random(0), [], []
    texts = [t for t in texts if len(t.split()) >= 100]
    for _ in range(pairs):
        words = words_of(rng.choice(texts))[:400]
        rate = 0.12 * rng.random() ** 2
        other = [rng.choice(words) if rng.random() < rate else w for w in words]
        sets = [{tuple(w[i : i + NGRAM]) for i in range(max(1, len(w) - NGRAM + 1))} for w in (words, other)]
        both += [" ".join(words), " ".join(other)]
        truth.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    found, truth = signatures(both), np.array(truth)
    candidate, similar = linked(found, np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2))
    count, rows = bands(THRESHOLD)
    print(f"\n## S-curve, {pairs:,} planted pairs, threshold {THRESHOLD}, {count} bands of {rows}\n")
    print("| Jaccard | pairs | share a band | formula | linked |\n|---|---|---|---|---|")
    for low in np.arange(0.3, 1.0, 0.05):
        inside = (truth >= low - 1e-9) & (truth < low + 0.05)
        expected = np.mean([candidate_probability(j, count, rows) for j in truth[inside]])
        print(f"| {low:.2f} to {low + 0.05:.2f} | {inside.sum()} | {candidate[inside].mean():.4f} | {expected:.4f} "
              f"| {similar[inside].mean():.4f} |")  # fmt: skip


def rightness(texts: list[str], found: np.ndarray) -> None:
    """Pairs of the corpus itself: linked against exact Jaccard."""
    start = time.perf_counter()
    pairs = exact_pairs(texts, 0.3)
    left, right = np.array(list(pairs)).T
    truth = np.array(list(pairs.values()))
    _, similar = linked(found, left, right)
    above = truth >= THRESHOLD
    print(f"\n## Pairs of the corpus, exact Jaccard by brute force ({time.perf_counter() - start:.0f} s)\n")
    print(f"{len(truth):,} pairs of at least 0.3; {above.sum():,} of at least {THRESHOLD}. Linked: {similar.sum():,}.")
    print(f"Precision {np.mean(above[similar]):.3f}, recall {np.mean(similar[above]):.3f}.")
    for margin in (0.03, 0.05):
        inside = similar & (truth < THRESHOLD - margin), ~similar & (truth >= THRESHOLD + margin)
        print(
            f"Linked below {THRESHOLD - margin:.2f}: {inside[0].sum()}; "
            f"not linked above {THRESHOLD + margin:.2f}: {inside[1].sum()}."
        )


def removed(documents: list[Document], tasks: dict[str, list[tuple[str, str]]], finder: Contamination, found: np.ndarray) -> None:
    """What is removed, by reason and domain, with examples."""
    texts = [d.text for d in documents]
    hits = finder.hits(texts)
    exact = exact_duplicates(text_keys(texts))
    alive = (exact < 0) & np.array([h is None for h in hits])
    near = near_duplicates(found, THRESHOLD, alive)
    reasons = ["duplicate" if e >= 0 else "contaminated" if h else "near-duplicate" if n >= 0 else None
               for e, h, n in zip(exact, hits, near)]  # fmt: skip
    counts: defaultdict[str, Counter] = defaultdict(Counter)
    for document, reason in zip(documents, reasons):
        counts[document.domain][reason] += 1
    print("\n## Removed\n\n| domain | documents | duplicate | contaminated | near-duplicate |\n|---|---|---|---|---|")
    for domain, row in sorted(counts.items()):
        kinds = " | ".join(str(row[r]) for r in ("duplicate", "contaminated", "near-duplicate"))
        print(f"| {domain} | {row.total()} | {kinds} |")
    rows = finder.summary(h.examples for h in hits if h)
    print("\n| task | examples | too short | found in documents | documents |\n|---|---|---|---|---|")
    for task, row in rows.items():
        print(f"| {task} | {row['examples']} | {row['unchecked']} | {row['found']} | {row['documents']} |")
    print("\nExamples:\n")
    for i in [i for i, r in enumerate(reasons) if r == "contaminated"][:4]:
        print(f"- {documents[i].origin}:{documents[i].line}: {hits[i].detail}")
    chosen = [i for i, r in enumerate(reasons) if r == "near-duplicate"]
    for i in chosen[:: max(1, len(chosen) // 8)]:
        alike = similarities(found, [i], [near[i]])[0]
        kept = documents[near[i]]
        print(f"- {documents[i].origin}:{documents[i].line}: {alike:.2f} of {kept.origin}:{kept.line}")
        print(f"    - {' '.join(documents[i].text.split())[:110]}\n    - {' '.join(kept.text.split())[:110]}")
    alike = similarities(found, np.array(chosen), near[chosen])
    print(f"\nSimilarity to the document that is kept: least {alike.min():.2f}, below {THRESHOLD}: {(alike < THRESHOLD).sum()}")


class Memory:
    """The most memory that this process had of its own, in MiB: mapped files, which the system can take back, do not count."""

    def __enter__(self):
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) // 1024)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def scale(sizes: list[int]) -> None:
    """Time and memory of near_duplicates over random signatures on disk, one in ten of them a copy of an earlier one."""
    print("\n## Search in signatures on disk\n\n| documents | signatures, GB | CPU s | memory at most, MiB |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for part in range(10):
                rows = rng.integers(0, 1 << 32, (size // 10, SLOTS), dtype=np.uint32)
                rows[::10] = rows[1::10]
                paths.append(Path(folder) / f"{part}.npy")
                np.save(paths[-1], rows)
            del rows
            start = time.process_time()
            with Memory() as memory:
                result = near_duplicates([np.load(p, mmap_mode="r") for p in paths], THRESHOLD, scratch=folder)
            seconds = time.process_time() - start
            if (result >= 0).sum() != size // 10:
                raise SystemExit(f"{(result >= 0).sum()} duplicates found of {size // 10}")
        print(f"| {size:,} | {size * SLOTS * 4 / 1e9:.1f} | {seconds:.0f} | {memory.peak} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--tasks", nargs="+", required=True, help="folders of JSON lines, one file a task")
    parser.add_argument("--sizes", nargs="*", type=lambda s: int(float(s)), default=[])
    arguments = parser.parse_args()
    if arguments.sizes:
        return scale(arguments.sizes)
    documents = list(FilesSource([arguments.corpus]).documents(Rejects()))
    texts = [d.text for d in documents]
    files = {p.name.split(".")[0]: str(p) for folder in arguments.tasks for p in sorted(Path(folder).glob("*.jsonl*"))}
    examples = JsonlReferences(files, max_examples=None).examples(Rejects())
    tasks = {task: [(e["id"], e["text"]) for e in found] for task, found in examples.items()}
    start = time.process_time()
    finder = Contamination(tasks)
    print(f"Index of {sum(map(len, tasks.values())):,} examples: {time.process_time() - start:.1f} s")
    found = signatures(texts)
    removed(documents, tasks, finder, found)
    rightness(texts, found)
    curve(texts)
    speeds(texts, finder)
    libraries(texts)


if __name__ == "__main__":
    main()
