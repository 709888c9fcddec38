"""Bits per byte of question plus right answer: what is read of a task, and the sums against a loop over single tokens."""

import gzip
import hashlib
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mads.data.batch import IGNORE, sum_by_sample
from mads.data.schema import DataError
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.eval.tasks import Task, macro_average, predicted_bytes, read_task, score_task, windows_of, without_template

VOCABULARY = 300
TEXTS = ["the boats turned in the old harbour", "é is rain over the harbour", "rain", "the rain fell softly " * 9, "7 boats"]


def make_tokenizer(folder):
    train_sentencepiece(TEXTS[:1] + TEXTS[2:], VOCABULARY, folder / "tokenizer.model")
    return Tokenizer.open(folder / "tokenizer.model")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def check_alone(name):
    """A check of this file with a folder or tokenizer of its own, for the mutants."""
    with tempfile.TemporaryDirectory() as folder:
        about_tokens = name == "check_bits_are_those_of_a_loop_over_tokens"
        globals()[name](make_tokenizer(Path(folder)) if about_tokens else Path(folder))


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    "query, expected",
    [
        ("Question: Why is it wet?", "Why is it wet?"),
        ("Question: Why is it wet?\nAnswer:", "Why is it wet?"),
        ("Question: dresser\n", "dresser"),
        ("Goal: Mend a boat.\nAnswer:", "Mend a boat."),
        ("Passage: It rains.\nQuestion: is it wet?", "It rains.\nis it wet?"),
        ("Passage: He asks.\nQuestion: why?\nQuestion: is it wet?", "He asks.\nQuestion: why?\nis it wet?"),
        ("What is the Question: of all?", "What is the Question: of all?"),
        ("It rains.\nQuestion: is it wet?", "It rains.\nQuestion: is it wet?"),
        ("The Answer: is no", "The Answer: is no"),
        (" A man sits. He ", "A man sits. He"),
    ],
)
def test_template_text_goes_and_nothing_else(query, expected):
    assert without_template(query) == expected


def check_right_answers_alone_are_read(folder):
    rows = [
        {"query": "Question: Which one?\nAnswer:", "choices": ["wrong one", " the right one ", "bad"], "gold": 1},
        {"query": "A man sits. He", "choices": ["falls.", "sings."], "gold": 0},
        {"context": "Question: Where to?", "continuation": " home"},
        {"text": " as it is \n"},
    ]
    task = read_task("mixed", write(folder / "mixed.jsonl.gz", rows))
    assert task.texts == ["Which one? the right one", "A man sits. He falls.", "Where to? home", "as it is"]
    assert task.sha256 == hashlib.sha256((folder / "mixed.jsonl.gz").read_bytes()).hexdigest()


def test_right_answers_alone_are_read(tmp_path):
    check_right_answers_alone_are_read(tmp_path)


@pytest.mark.parametrize(
    "row, complaint",
    [
        ({"query": "a?", "choices": ["b"], "gold": 1}, "gold=1 does not name one of the choices"),
        ({"query": "a?", "choices": ["b", "c"], "gold": True}, "gold=True does not name"),
        ({"query": "a?", "choices": ["  "], "gold": 0}, "empty text"),
        ({"query": "Question: \nAnswer:", "choices": ["b"], "gold": 0}, "nothing is left of the question"),
        ({"context": "a", "continuation": 3}, "'continuation' is a int"),
        ({"question": "a"}, "'text'"),
    ],
)
def test_a_line_that_is_no_example_is_an_error(tmp_path, row, complaint):
    path = write(tmp_path / "task.jsonl", [{"text": "fine"}, row])
    with pytest.raises(
        DataError, match=r"1 lines of task.jsonl are no examples, the first in line 2: .*" + complaint.replace("(", r"\(")
    ):
        read_task("task", path)


def test_a_limit_draws_the_same_texts_wherever_they_lie(tmp_path):
    rows = [{"text": f"text {i}"} for i in range(50)]
    some = read_task("a", write(tmp_path / "a.jsonl", rows), 12).texts
    again = read_task("b", write(tmp_path / "b.jsonl", rows[::-1]), 12).texts
    assert len(some) == 12 and sorted(some) == sorted(again) and some != [r["text"] for r in rows[:12]]
    assert some == sorted(some, key=lambda text: int(text.split()[1])), "in the order of the file"
    assert len(read_task("a", tmp_path / "a.jsonl", 99).texts) == 50


def test_windows_predict_each_token_but_the_first_once():
    tokens = np.arange(23)
    for length in (2, 5, 11, 12, 22, 23, 24):
        windows = windows_of(tokens, length)
        assert max(map(len, windows)) <= length and [t for w in windows for t in w[1:]] == list(range(1, 23))
    assert windows_of(tokens[:1], 5) == [] and windows_of(tokens[:0], 5) == []


def test_a_first_token_that_is_part_of_a_character_is_one_byte():
    assert predicted_bytes("ärger", "ä") == 4 and predicted_bytes("ärger", "är") == 3 and predicted_bytes("ärger", "\ufffd") == 5


def bigrams(seed=0):
    """Table of losses of each token after each other one, and the function that score_task asks."""
    table = np.random.default_rng(seed).gamma(2.0, 2.0, (VOCABULARY, VOCABULARY))

    def losses_of(batch):
        losses = table[batch.tokens.numpy(), np.maximum(batch.labels.numpy(), 0)] * (batch.labels.numpy() != IGNORE)
        return sum_by_sample(torch.from_numpy(losses), batch).numpy()

    return table, losses_of


def check_bits_are_those_of_a_loop_over_tokens(tokenizer):
    table, losses_of = bigrams()
    score = score_task(Task("task", TEXTS, ""), tokenizer, losses_of, seq_length=16, rows=2)
    predicted = 0
    for i, text in enumerate(TEXTS):
        tokens = tokenizer.encode([text])[0].tolist()
        bits = sum(table[a, b] for a, b in zip(tokens, tokens[1:])) / math.log(2)
        first = 1 if text.startswith("é") else len(tokenizer.decode(tokens[:1]).encode())
        size = len(text.encode()) - first if len(tokens) > 1 else 0
        predicted += len(tokens) - 1
        assert score.bits[i] == pytest.approx(bits, rel=1e-12) and score.sizes[i] == size, text
    assert score.tokens == predicted and max(len(tokenizer.encode([t])[0]) for t in TEXTS) > 32, "a text of several windows"
    assert score.bits_per_byte == pytest.approx(sum(score.bits) / sum(score.sizes))


def test_bits_are_those_of_a_loop_over_tokens(tokenizer):
    check_bits_are_those_of_a_loop_over_tokens(tokenizer)


def test_texts_without_a_target_are_counted(tokenizer):
    _, losses_of = bigrams()
    score = score_task(Task("task", ["r", "the rain", "7"], ""), tokenizer, losses_of, 16)
    assert score.summary()["skipped"] == 2 and score.summary()["examples"] == 3 and score.bits[0] == score.sizes[0] == 0
    assert score.standard_error is None
    with pytest.raises(DataError, match="none of its 1 texts has two tokens"):
        score_task(Task("task", ["r"], ""), tokenizer, losses_of, 16)


def test_the_standard_error_is_that_of_the_ratio(tokenizer):
    """Against the jackknife, which agrees to the order 1/n."""
    _, losses_of = bigrams()
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice("the rain fell softly over old boats".split(), rng.integers(3, 30))) for _ in range(200)]
    score = score_task(Task("task", texts, ""), tokenizer, losses_of, 32)
    left_out = [(score.bits.sum() - b) / (score.sizes.sum() - s) for b, s in zip(score.bits, score.sizes)]
    jackknife = math.sqrt(199 / 200 * np.square(left_out - np.mean(left_out)).sum())
    assert score.standard_error == pytest.approx(jackknife, rel=0.03)


def test_the_mean_is_over_tasks_that_are_not_apart(tokenizer):
    _, losses_of = bigrams()
    scores = {n: score_task(Task(n, [text], ""), tokenizer, losses_of, 16) for n, text in zip("abc", (TEXTS[0], *TEXTS[3:]))}
    a, b = scores["a"].bits_per_byte, scores["b"].bits_per_byte
    assert macro_average(scores, ["c"]) == pytest.approx((a + b) / 2) and macro_average(scores, "abc") is None
