"""Exported tokenizers: AutoTokenizer gives mads' ids and texts, on real text, on nasty text and on random text."""

import io
import json
import random
import tempfile
from pathlib import Path

import pytest
import sentencepiece

from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.export.tokenizer import tokenizer_files

ROOT = Path(__file__).parents[3]
REAL = [(ROOT / name).read_text() for name in ("README.md", "docs/method.md", "mads/console/decide.py", "pyproject.toml")]
NASTY = [
    "",
    " ",
    "   ",
    "\n\n  def f():\n\treturn 1\n",
    " lead and trail ",
    "a\r\nb\r",
    "\0a\0",
    "\x01\x02\x1b\x7f\x85",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \u00e9 \ufb01 \u212b",
    "\ufeff\ufffd\u2028\u2029\u200b\xa0",
    "\u2581",
    "a\u2581b \u2581\u2581 x",
    "<s>struck</s><unk><0x41><|endoftext|>",
    "\u4f60\u597d\uff0c\u4e16\u754c \u0645\u0631\u062d\u0628\u0627 \U0010ffff",
    "0123456789 3.14159 1e-5",
]


def random_texts(count=400):
    rng = random.Random(0)
    words = [w for text in REAL for w in text.split(" ")] + ["</s>", "<s>", "<0x41>", "", "", "\u2581", "===", "\u4f60"]
    runs = ["".join(rng.choice("= -a\n") * rng.randrange(1, 30) for _ in range(20)) for _ in range(count)]
    return runs + [" ".join(rng.choice(words) for _ in range(rng.randrange(50))) for _ in range(count)]


def training():
    rng = random.Random(1)
    return REAL + ["".join(rng.choice("= -a.") * rng.randrange(1, 40) for _ in range(100)) for _ in range(30)]


def open_both(folder, path, kind="sentencepiece", texts=()):
    """(mads' tokenizer, what AutoTokenizer makes of its files, what is known of them)."""
    from transformers import AutoTokenizer

    ours = Tokenizer.open(path, kind)
    made = tokenizer_files(Path(path), ours, 64, texts)
    target = folder / "hf"
    target.mkdir()
    for name, content in made.files.items():
        (target / name).write_bytes(content)
    (target / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    theirs = AutoTokenizer.from_pretrained(target) if made.problem is None else None
    return ours, theirs, made


def check_equal(ours, theirs):
    for text in [*NASTY, *REAL, *random_texts()]:
        ids = ours.encode([text])[0].tolist()
        assert theirs.encode(text) == ids and theirs(text)["input_ids"] == ids, text[:200]
        assert theirs.decode(ids) == ours.decode(ids), text[:200]
        assert not ours.lossless or theirs.decode(ids) == text, text[:200]
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.eod


def check_trained(folder):
    train_sentencepiece(training(), 700, folder / "tokenizer.model")
    ours, theirs, made = open_both(folder, folder / "tokenizer.model")
    assert made.problem is None, made.problem
    check_equal(ours, theirs)
    assert made.special == {"bos": 1, "eos": 2, "pad": None} and ours.lossless
    assert made.files["tokenizer.model"] == (folder / "tokenizer.model").read_bytes()
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == ("<s>", "</s>", "<unk>")
    assert theirs.encode("x</s>", split_special_tokens=False)[-1] == 2  # for those who want the name read
    assert theirs.decode([*theirs.encode("end"), 2], skip_special_tokens=True) == "end"


def check_trained_anywhere():
    with tempfile.TemporaryDirectory() as folder:
        check_trained(Path(folder))


def test_a_trained_sentencepiece_model(tmp_path):
    check_trained(tmp_path)


def test_a_sentencepiece_model_that_puts_a_space_before_a_text(tmp_path):
    train_given(tmp_path / "given.model", model_type="bpe", byte_fallback=True, normalization_rule_name="identity", **KEEPS)
    check_equal(*open_both(tmp_path, tmp_path / "given.model")[:2])


KEEPS = dict(remove_extra_whitespaces=False, split_digits=True)


def train_given(path, vocab_size=500, **settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training()), model_writer=model, vocab_size=vocab_size, minloglevel=2, **settings
    )
    path.write_bytes(model.getvalue())


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(model_type="unigram", normalization_rule_name="identity", vocab_size=150), "no byte-pair encoding, it takes out"),
        (dict(model_type="bpe", **KEEPS), "changes characters before encoding"),
        (
            dict(model_type="bpe", normalization_rule_name="identity", user_defined_symbols=["<tool>"], **KEEPS),
            "pieces that users defined",
        ),
    ],
)
def test_models_without_an_equal_come_as_they_are(tmp_path, settings, words):
    train_given(tmp_path / "given.model", **settings)
    _, _, made = open_both(tmp_path, tmp_path / "given.model")
    assert words in made.problem and list(made.files) == ["tokenizer.model"] and made.special["eos"] == 2


def write_huggingface(path, post_processor=True):
    """A byte-level BPE as of Llama 3, which puts <|begin_of_text|> before a text, cuts and pads."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|other|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(training(), trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet))
    template = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    core.enable_truncation(16)
    core.enable_padding(length=16)
    core.save(str(path))


def test_a_tokenizer_json_loses_what_it_puts_around_a_text(tmp_path):
    write_huggingface(tmp_path / "given.json")
    ours, theirs, made = open_both(tmp_path, tmp_path / "given.json", "huggingface")
    check_equal(ours, theirs)
    assert made.special == {"bos": 0, "eos": 1, "pad": None} and "tokenizer.model" not in made.files
    assert (theirs.bos_token, theirs.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    text = "<|other|> is text"
    assert theirs.encode(text) == ours.encode([text])[0].tolist() and 2 not in theirs.encode(text)


def test_a_difference_on_the_runs_own_texts_is_told(tmp_path, monkeypatch):
    train_sentencepiece(training(), 700, tmp_path / "tokenizer.model")
    ours = Tokenizer.open(tmp_path / "tokenizer.model")
    encode = ours.encode
    monkeypatch.setattr(
        ours, "encode", lambda texts: [ids[::-1] if "river" in text else ids for text, ids in zip(texts, encode(texts))]
    )
    texts = ["stone and water", "the river ran"]
    assert tokenizer_files(tmp_path / "tokenizer.model", ours, 64, texts[:1]).problem is None
    made = tokenizer_files(tmp_path / "tokenizer.model", ours, 64, texts)
    assert made.problem == "its ids of 'the river ran' differ" and list(made.files) == ["tokenizer.model"]
