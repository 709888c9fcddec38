"""`mads eval --harness`: a checkpoint through lm-evaluation-harness, with the numbers that its own adapter for transformers finds
on the exported model (docs/evaluation.md). Tasks are local files; nothing is downloaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import tokenizers
import torch
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from mads.config.compose import ConfigError
from mads.data.schema import DataError
from mads.export.tokenizer import special_tokens, tokenizer_files
from mads.launch.one_process import one_process
from mads.train.inference import SavedModel

MAX_NEW_TOKENS = 256  # where a task does not say, as the harness
NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of the same, the first one counts
WITHOUT_EFFECT = ("top_p", "top_k")  # of greedy generation


class DecoderLM(TemplateLM):
    """The harness's view of a decoder: log-likelihoods and greedy generation, in batches of rows padded on the right.

    A text is encoded without special tokens. Where there is no context, one token stands before it as in the adapter for
    transformers: the tokenizer's beginning of a text, or the end of one if it has none. What is too long loses its left end.
    """

    def __init__(self, saved: SavedModel, device: torch.device, batch_size: int):
        super().__init__()
        self._device = device
        self._model = saved.load().to(device)
        self._tokenizer, self._batch_size = saved.tokenizer, batch_size
        self._special = special_tokens(saved.tokenizer_file, saved.tokenizer)
        self.max_length = saved.config.data.seq_length
        files = tokenizer_files(saved.tokenizer_file, saved.tokenizer, self.max_length, texts=()).files
        # Bytes that are no UTF-8 become other replacement characters here than in SentencePiece.
        self._exported = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()) if "tokenizer.json" in files else None

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eod

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self._special.bos is None else self._special.bos

    @property
    def tokenizer_name(self) -> str:
        return f"mads {self._tokenizer.kind}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self._tokenizer.encode([string])[0].tolist()

    def _decode(self, tokens: Iterable[int]) -> str:
        """Without special tokens, and without ids of the model that the tokenizer does not have."""
        if self._exported is not None:
            return self._exported.decode(list(tokens), skip_special_tokens=True)
        kept = [t for t in tokens if t < self._tokenizer.vocab_size and t not in self._special.ids]
        return self._tokenizer.decode(kept)

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """[rows, longest, vocabulary]; behind a row's end they mean nothing."""
        longest = max(map(len, rows))
        tokens = torch.zeros((len(rows), longest), dtype=torch.int64)
        segments = torch.full_like(tokens, -1)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            segments[i, : len(row)] = i
        positions = torch.arange(longest).expand_as(tokens)
        return self._model.logits(*(part.to(self._device) for part in (tokens, positions, segments)))

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if empty := [request.args for request in requests if not request.args[1]]:
            raise _no_answer(*empty[0])
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy generation gives it) of each (texts, context, continuation); the
        texts of a window, which is never too long or empty, are None."""
        rows: dict[tuple[int, ...], list[int]] = {}  # choices of one token share their row
        for i, (texts, context, continuation) in enumerate(requests):
            if not continuation:
                raise _no_answer(*texts)
            if len(continuation) > self.max_length:
                raise DataError(
                    f"the answer {texts[1][:40]!r}... of {len(continuation)} tokens cannot be scored by a model of "
                    f"{self.max_length} positions (data.seq_length); take it out of the task's data, or leave the task out"
                )
            row = (*context, *continuation)[-(self.max_length + 1) : -1]
            rows.setdefault(row, []).append(i)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch in _batches(sorted(rows, key=len, reverse=True), self._batch_size):
            logits = self._logits(batch)
            for row, scores in zip(batch, logits):
                for i in rows[row]:
                    targets = torch.tensor(requests[i][2], device=self._device)
                    picked = scores[len(row) - len(targets) : len(row)].float()
                    found = picked.log_softmax(-1).gather(1, targets[:, None]).sum()
                    answers[i] = (float(found), bool((picked.argmax(-1) == targets).all()))
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that share no target; each begins with the last token of the one before."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *utils.make_disjoint_window(pair)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (found, _) in zip(owners, self._loglikelihood_tokens(windows)):
            totals[i] += found
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, up to the first of the stop words, the end of a text or the most tokens that the task allows."""
        settings = [_greedy_settings(request.args[1]) for request in requests]
        made: list[str] = [""] * len(requests)
        contexts = []
        for request, (_, most) in zip(requests, settings):
            room = self.max_length - most
            if room < 1:
                raise DataError(
                    f"a task generates up to {most} tokens, and the model has {self.max_length} positions (data.seq_length): set "
                    f"generation_kwargs: max_gen_toks in the task's file to less than {self.max_length}"
                )
            contexts.append(self.tok_encode(request.args[0])[-room:] or [self.prefix_token_id])
        order = sorted(range(len(requests)), key=lambda i: -len(contexts[i]))
        for batch in _batches(order, self._batch_size):
            stops = [[*settings[i][0], self._special.eos_text] for i in batch]
            for i, text in zip(batch, self._greedy([contexts[i] for i in batch], stops, [settings[i][1] for i in batch])):
                made[i] = text
        return made

    def _greedy(self, contexts: list[list[int]], stops: list[list[str]], most: list[int]) -> list[str]:
        rows, texts = [list(context) for context in contexts], [""] * len(contexts)
        running = list(range(len(rows)))
        while running:
            logits = self._logits([rows[i] for i in running])
            for i, scores in zip(list(running), logits):
                rows[i].append(int(scores[len(rows[i]) - 1].argmax()))
                new = rows[i][len(contexts[i]) :]
                texts[i] = self._decode(new)
                if new[-1] == self.eot_token_id or len(new) == most[i] or any(stop and stop in texts[i] for stop in stops[i]):
                    running.remove(i)
        return [_cut(text, stop) for text, stop in zip(texts, stops)]


def _no_answer(before: str, answer: str) -> DataError:
    return DataError(
        f"the answer {answer!r} behind {before[-40:]!r} has no token of its own: it is empty, or the tokenizer joins it to the "
        "text before it; set target_delimiter in the task's file, or leave the task out"
    )


def _batches(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text


def _greedy_settings(given: dict[str, Any]) -> tuple[list[str], int]:
    """(stop words, most new tokens) of a task's generation_kwargs.

    Raises:
        DataError: it asks for something else than greedy generation, or for no token.
    """
    rest = {key: value for key, value in given.items() if value is not None}
    until, counts = rest.pop("until", []), [rest.pop(name, None) for name in NEW_TOKENS]
    temperature = rest.pop("temperature", 0.0)
    sampling = rest.pop("do_sample", temperature > 0)  # do_sample: false takes the temperature's effect, in the harness too
    unknown = sorted(set(rest) - set(WITHOUT_EFFECT))
    if sampling or unknown:
        raise DataError(
            f"generation_kwargs={given} of a task ask for more than greedy generation ({', '.join(unknown) or 'sampling'}); set "
            "do_sample: false and leave the rest out"
        )
    most = int(next((count for count in counts if count is not None), MAX_NEW_TOKENS))
    if most < 1:
        raise DataError(f"generation_kwargs={given} of a task ask for {most} tokens, which must be at least 1")
    return [until] if isinstance(until, str) else list(until), most


def run_harness(
    saved: SavedModel,
    tasks: Sequence[str],
    include_path: str,
    device: torch.device,
    batch_size: int,
    num_fewshot: int | None,
    limit: int | None,
    examples: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what evaluation.json holds under "harness", one row for each example if asked for).

    Args:
        tasks: names of tasks or groups in the YAML files below `include_path`. These files may name code, which is run.
        limit: the first examples of each task; None: all.

    Raises:
        ConfigError: there is no such folder or task, a task's data are not local, or num_fewshot is without effect.
        DataError: a task asks for what the decoder cannot do.
    """
    if not Path(include_path).is_dir():
        raise ConfigError(f"--include-path={include_path} is no folder")
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    with one_process():
        found = evaluator.simple_evaluate(
            tasks=_load(tasks, include_path, num_fewshot),  # before the weights are read
            model=DecoderLM(saved, device, batch_size),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=TaskManager(include_path=include_path, include_defaults=False),
        )
    kept = {
        key: found[key] for key in ("results", "groups", "n-shot", "versions", "higher_is_better", "n-samples") if key in found
    }
    hashes = {name: _hash(rows) for name, rows in found["samples"].items()}
    record = {"lm_eval": version("lm_eval"), "batch_size": batch_size, "limit": limit, **_as_json(kept), "task_hashes": hashes}
    rows = [{"task": name, **_as_json(row)} for name, rows in found["samples"].items() for row in rows] if examples else []
    return record, rows


def _load(names: Sequence[str], include_path: str, num_fewshot: int | None) -> list[Any]:
    """The groups that are named, and the tasks that are in none of them."""
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ConfigError(
            f"--harness {unknown[0]} is in no YAML file below {include_path}; there are {sorted(manager.all_tasks)}"
        )
    try:
        loaded = manager.load(list(names))
    except (OSError, ValueError, ConnectionError) as error:
        raise ConfigError(f"--harness {' '.join(names)}: a task could not be loaded ({error}); its data must be local") from error
    fixed = [name for name, task in loaded["tasks"].items() if task.get_config("num_fewshot") == 0]
    if num_fewshot and fixed:
        raise ConfigError(
            f"--num-fewshot={num_fewshot} has no effect on {fixed[0]}, whose file has num_fewshot: 0; take that line or "
            "the option out"
        )
    groups = [loaded["groups"][name] for name in names if name in loaded["groups"]]
    inside = {task.task_name for group in groups for task in group.get_all_tasks()}
    return groups + [task for name, task in loaded["tasks"].items() if name not in inside]


def _hash(rows: Sequence[dict[str, Any]]) -> str:
    """Of a task's documents, prompts and targets, as the harness has it: runs with the same one were asked the same."""
    texts = "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
    return hashlib.sha256(texts.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    """Plain values; a number that is not finite (the standard error of one example) is None."""
    if isinstance(value, dict):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)
