import sys

import numpy as np
import pytest
import sentencepiece

from mads.data.schema import DataError
from mads.data.tokenizer import Tokenizer, train_sentencepiece

WORDS = "the river ran over grey stones while nobody watched and def return self import value 1998 2024 ( ) : = , .".split()
NASTY = [
    "",
    " ",
    "   ",
    "\n",
    "\t\tx",
    "a\r\nb\r",
    " lead",
    "trail ",
    "a  b   c",
    "\n\n  def f():\n\treturn 1\n",
    "\0",
    "a\0b\0",
    "\x01\x02\x1b\x7f\x85",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 \u00e9 \ufb01 \u212b",
    "\ufeffbom",
    "\ufffd",
    "\u2028\u2029\u200b\xa0",
    "\u2581",
    "a\u2581b",
    "\u2581\u2581 x \u2581",
    " \u2581 ",
    "\u2585 \u2585",
    "<s></s><unk><0x41>",
    "<pad>",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "\u0645\u0631\u062d\u0628\u0627",
    "\U0010ffff",
]


def corpus(seed=0, count=60):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(5, 60))) + "\n" for _ in range(count)] + ["tab\there \u2585 nul\0 \u2581"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(corpus(), 340, path)
    return path


def test_trained_tokenizer_is_lossless_on_nasty_texts(model):
    tokenizer = Tokenizer.open(model)
    texts = NASTY + corpus(1, 20)
    ids = tokenizer.encode(texts)
    assert [tokenizer.decode(i) for i in ids] == texts
    assert tokenizer.lossless and tokenizer.lossy_texts(texts) == []
    assert all(i.dtype == np.int32 for i in ids)
    flat = np.concatenate(ids)
    assert flat.min() >= 3 and flat.max() < tokenizer.vocab_size == 340  # no special piece, </s> in the text included
    assert tokenizer.eod == 2


def test_random_unicode_round_trips_and_equals_plain_sentencepiece(model):
    tokenizer, plain = Tokenizer.open(model), sentencepiece.SentencePieceProcessor(model_file=str(model))
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(200):
        points = rng.integers(0, 0x11000, rng.integers(1, 40))
        texts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    assert tokenizer.lossy_texts(texts) == []
    ordinary = [t for t in texts if "\u2581" not in t] + corpus(2, 5)[:-1]
    assert [i.tolist() for i in tokenizer.encode(ordinary)] == plain.encode(ordinary)


def test_training_learns_words_and_is_deterministic(model, tmp_path):
    train_sentencepiece(iter(corpus()), 340, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()
    text = " ".join(WORDS[:11])
    assert len(Tokenizer.open(model).encode([text])[0]) < len(text) / 1.8
    plain = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert [plain.id_to_piece(i) for i in plain.encode("2024")] == ["2", "0", "2", "4"]


@pytest.mark.parametrize(
    "texts, vocab_size, match",
    [
        (corpus(), 258, "vocab_size=258 is too small: .* take 259"),
        (["abcdefghijklmnopqrstuvwxyz"], 262, "vocab_size=262 is too small: the text's characters and all bytes take"),
        (["hello world"], 4096, "vocab_size=4096 is more than the training text can fill, at most [0-9]+"),
        ([], 300, "no text to train the tokenizer on"),
        (["", "\0"], 300, "no text to train|more than the training text can fill"),
    ],
)
def test_impossible_vocabularies_are_explained(tmp_path, texts, vocab_size, match):
    with pytest.raises(DataError, match=match):
        train_sentencepiece(texts, vocab_size, tmp_path / "x.model")
    assert list(tmp_path.iterdir()) == []


def test_open_explains_what_is_wrong(tmp_path, model):
    with pytest.raises(DataError, match="no tokenizer file"):
        Tokenizer.open(tmp_path / "none.model")
    with pytest.raises(DataError, match="unknown tokenizer kind 'bpe'"):
        Tokenizer.open(model, "bpe")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match="bad.model is no SentencePiece model"):
        Tokenizer.open(tmp_path / "bad.model")
    with pytest.raises(DataError, match="is not a tokenizer.json"):
        Tokenizer.open(model, "huggingface")
    with pytest.raises(DataError, match="text 1 has a lone surrogate at character 2"):
        Tokenizer.open(model).encode(["fine", "ab\ud800"])


def test_a_lossy_given_model_is_recognised(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(tmp_path / "nmt"), vocab_size=90, hard_vocab_limit=False, minloglevel=2
    )  # SentencePiece's defaults: NFKC, extra spaces removed, no bytes
    tokenizer = Tokenizer.open(tmp_path / "nmt.model")
    assert not tokenizer.lossless and tokenizer.lossy_texts(["the  river", "the river"]) == [0]


def write_huggingface(path, special):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.enable_truncation(5)  # a leftover that must not cut documents
    tokenizer.save(str(path))


def test_huggingface_tokenizer_is_lossless_and_reads_its_eod(tmp_path):
    write_huggingface(tmp_path / "tokenizer.json", ["<unk>", "<|end_of_text|>"])
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json", "huggingface")
    assert tokenizer.eod == 1 and tokenizer.vocab_size == 320 and tokenizer.lossless
    texts = NASTY + corpus(1, 5) + ["not the end <|end_of_text|> of it"]
    assert tokenizer.lossy_texts(texts) == []
    assert all(tokenizer.eod not in ids for ids in tokenizer.encode(texts))


def test_huggingface_without_eod_or_package_is_explained(tmp_path, monkeypatch):
    write_huggingface(tmp_path / "tokenizer.json", ["<unk>"])
    with pytest.raises(DataError, match=r"none of the end-of-document tokens .*special tokens are \['<unk>'\]"):
        Tokenizer.open(tmp_path / "tokenizer.json", "huggingface")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'mads\[hf\]'"):
        Tokenizer.open(tmp_path / "tokenizer.json", "huggingface")
