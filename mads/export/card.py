"""README.md of an exported model: what it is, where it comes from, how it is opened."""

from __future__ import annotations

from typing import Any

from mads import __version__
from mads.logging.environment import git_state

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- mads
---

# {title}

A LLaMA-family decoder of {parameters:,} parameters, pretrained with mads and exported as `LlamaForCausalLM` in {dtype}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

| provenance | |
|---|---|
{rows}

Trained on rows of {seq_length} tokens in which documents do not see each other. No token was put before a document; token
{eos} ended it. {tokenizer}
"""
_AS_TEXT = (
    "The tokenizer therefore adds nothing, and reads the names of special tokens inside a text as text (`split_special_tokens`)."
)
_NO_TOKENIZER = (
    "`AutoTokenizer` cannot open this folder, because the tokenizer has no equal as a `tokenizer.json` ({problem}): {remedy}."
)


def model_card(provenance: dict[str, Any], dtype: str, parameters: int, eos: int, problem: str | None, kind: str) -> str:
    """The text.

    Args:
        provenance: name -> value, shown as a table; it has `run`, `step` and `seq_length`.
        problem: why there is no tokenizer.json, or None.
        kind: of the tokenizer.
    """
    git = git_state()
    made = __version__ + (f", commit {git['commit']}{', modified' if git['modified'] else ''}" if git else "")
    remedy = (
        "use `tokenizer.model` with SentencePiece" if kind == "sentencepiece" else "use the file that the data was prepared with"
    )
    return _CARD.format(
        title=f"{provenance['run']}, step {provenance['step']:,}",
        parameters=parameters,
        dtype=dtype,
        rows="\n".join(f"| {name} | {value} |" for name, value in (provenance | {"mads": made}).items()),
        seq_length=provenance["sequence length"],
        eos=eos,
        tokenizer=_AS_TEXT if problem is None else _NO_TOKENIZER.format(problem=problem, remedy=remedy),
    )
