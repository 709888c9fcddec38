"""Tokenizers: SentencePiece, trained here or given, and optionally a tokenizer.json of Hugging Face `tokenizers`."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from mads.data.schema import DataError

KINDS = ("sentencepiece", "huggingface")
EOD_NAMES = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|eos|>", "[EOS]")  # Llama 3, GPT, Llama 2, Gemma, others
_SPACE = "\u2581"  # SentencePiece writes a space as this character, so the character itself would come back as a space
_SMALLEST_VOCABULARY = 256 + 3  # byte pieces, <unk>, <s>, </s>
# U+2585 and NUL mark unknown pieces and ends inside SentencePiece's trainer, which skips every text that holds one.
_TRAINING_BLANKS = str.maketrans({"\u2585": " ", "\0": " ", _SPACE: " "})
_PROBE = "a  b\t\tc\r\n\n  d e\u0301 \u00e9 \ufb01 \U0001f600 \x01 \ufeff\u2028\xa0 <s></s> \0end "


def train_sentencepiece(texts: Iterable[str], vocab_size: int, path: str | os.PathLike) -> None:
    """Train a byte-pair encoding with byte fallback and write it to `path` atomically.

    Lossless: identity normalisation, white space kept as it is, no space put before a text. Digits are single pieces, as in
    LLaMA. One thread and no sampling, so that the same texts give the same file.

    Raises:
        DataError: a vocabulary too small to hold all bytes and frequent characters, or larger than the texts can fill.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise DataError(f"model.vocab_size={vocab_size} is too small: 256 bytes and 3 special pieces take {_SMALLEST_VOCABULARY}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.translate(_TRAINING_BLANKS) for text in texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.9995,
            max_sentence_length=1 << 30,  # longer texts would be skipped, not cut
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain(str(error), vocab_size)) from error
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(model.getvalue())
    os.replace(temporary, path)


def _explain(message: str, vocab_size: int) -> str:
    """SentencePiece names its source line and a condition; say what to do instead."""
    if found := re.search(r"too high.*<= (\d+)", message):
        return (
            f"model.vocab_size={vocab_size} is more than the training text can fill, at most {found[1]}: lower model.vocab_size, "
            "give more text, or raise data.tokenizer.train_megabytes"
        )
    if found := re.search(r"smaller than required_chars\D*(\d+) vs (\d+)", message):
        return f"model.vocab_size={vocab_size} is too small: the text's characters and all bytes take {found[2]}; raise it"
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return "there is no text to train the tokenizer on; check the source, or raise data.tokenizer.train_megabytes"
    return f"the tokenizer could not be trained with model.vocab_size={vocab_size}: {message.strip()}"


class Tokenizer:
    """Text to token ids and back.

    kind: one of KINDS; vocab_size: number of ids; eod: id that ends a document
    """

    kind: str
    vocab_size: int
    eod: int

    @staticmethod
    def open(path: str | os.PathLike, kind: str = "sentencepiece") -> Tokenizer:
        """Open a SentencePiece model or a tokenizer.json.

        Raises:
            DataError: unknown kind, a file that is missing or of another kind, or a tokenizer without an end-of-document piece.
        """
        if kind not in KINDS:
            raise DataError(f"unknown tokenizer kind {kind!r}; known are {', '.join(KINDS)}")
        if not Path(path).is_file():
            raise DataError(f"there is no tokenizer file {path}; check data.tokenizer.path, or prepare the data again")
        return _SentencePiece(path) if kind == "sentencepiece" else _HuggingFace(path)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32, without any special piece. Raises DataError for a text with a lone surrogate."""
        for index, text in enumerate(texts):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                where = f"text {index} has a lone surrogate at character {error.start}"
                raise DataError(f"{where}: it is not valid Unicode") from error
        return [np.asarray(ids, dtype=np.int32) for ids in self._encode(list(texts))]

    def decode(self, tokens: np.ndarray) -> str:
        """The text of some ids."""
        return self._decode(np.asarray(tokens).tolist())

    def lossy_texts(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts that do not come back from encode and decode as they were."""
        return [i for i, (text, ids) in enumerate(zip(texts, self.encode(texts))) if self.decode(ids) != text]

    @property
    def lossless(self) -> bool:
        """Whether white space, control characters, unnormalised and rare characters survive a round trip."""
        return not self.lossy_texts([_PROBE, f"a{_SPACE}b", " " + _PROBE])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        raise NotImplementedError

    def _decode(self, tokens: list[int]) -> str:
        raise NotImplementedError


class _SentencePiece(Tokenizer):
    kind = "sentencepiece"

    def __init__(self, path: str | os.PathLike):
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes())
        except (RuntimeError, OSError) as error:
            reason = str(error).strip()
            raise DataError(f"{path} is no SentencePiece model ({reason}); for a tokenizer.json set kind=huggingface") from error
        self.vocab_size, self.eod = self._model.vocab_size(), self._model.eos_id()
        if self.eod < 0:
            raise DataError(f"{path} has no </s> piece, which ends a document; train it with eos_id >= 0")
        space_bytes = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        # A model without byte pieces, or one that puts a space before each text, cannot spell the character by its bytes.
        pieces = self._model.encode(["a", "b"])
        self._space = space_bytes if self._model.decode(pieces[0] + space_bytes + pieces[1]) == f"a{_SPACE}b" else None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        out = self._model.encode(texts, num_threads=1)  # its default starts a thread for every core
        if self._space is not None:
            for i, text in enumerate(texts):
                if _SPACE in text:
                    out[i] = self._encode_with_space_character(text)
        return out

    def _encode_with_space_character(self, text: str) -> list[int]:
        first, *others = self._model.encode(text.split(_SPACE))
        return first + [token for part in others for token in self._space + part]

    def _decode(self, tokens: list[int]) -> str:
        return self._model.decode(tokens)


class _HuggingFace(Tokenizer):
    kind = "huggingface"

    def __init__(self, path: str | os.PathLike):
        try:
            import tokenizers
        except ImportError as error:
            raise DataError("data.tokenizer.kind=huggingface needs the package `tokenizers`: pip install 'mads[hf]'") from error
        try:
            self._model = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the Rust side raises plain Exception
            raise DataError(f"{path} is not a tokenizer.json of the `tokenizers` package ({error})") from error
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # "<|end_of_text|>" inside a document is text, not its end
        self.vocab_size = self._model.get_vocab_size(with_added_tokens=True)
        special = {t.content: i for i, t in self._model.get_added_tokens_decoder().items() if t.special}
        named = [name for name in EOD_NAMES if name in special]
        if not named:
            raise DataError(
                f"{path} has none of the end-of-document tokens {', '.join(EOD_NAMES)}; "
                f"its special tokens are {sorted(special)[:20]}"
            )
        self.eod = special[named[0]]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._model.encode_batch(texts, add_special_tokens=False)]

    def _decode(self, tokens: list[int]) -> str:
        return self._model.decode(tokens, skip_special_tokens=False)
