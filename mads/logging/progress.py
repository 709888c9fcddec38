"""Progress as plain text lines on rank 0: one per log interval, one per evaluation, one block per decision."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from mads.console.record import DecisionRecord, LabelRecord

BAR = 20  # characters of a theta bar
RANKED = 4  # labels shown from each end of a ranking


def count(value: float) -> str:
    """1234567 -> 1.23M, three significant digits."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            scaled = value / limit
            return f"{scaled:.{max(0, 2 - len(str(int(abs(scaled)))) + 1)}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """65 -> 1m05s, 3700 -> 1h01m."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def printable(text: str) -> str:
    """Labels and domains come from corpora: control characters, which could steer a terminal, are spelt out; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def train_line(line: dict[str, Any], total_steps: int, eta_seconds: float | None) -> str:
    """One line of kind "train" for reading."""
    width = len(str(total_steps))
    eta = "?" if eta_seconds is None else duration(eta_seconds)
    return (
        f"step {line['step']:>{width}}/{total_steps}  {count(line['tokens']):>6} tokens  loss {_number(line['loss'], '.4f')}  "
        f"lr {_number(line['lr'], '.2e')}  grad {_number(line['grad_norm'], '.3f')}  "
        f"{count(line['tokens_per_second'] or 0):>6} tokens/s  ETA {eta}"
    )


def eval_line(line: dict[str, Any]) -> str:
    """One line of kind "eval": means first, then every domain and task."""
    parts = [f"  eval at step {line['step']}:"]
    for name, mean, each in (("held-out", "heldout_mean", "heldout"), ("references", "references_mean", "references")):
        if line.get(each):
            detail = ", ".join(f"{k} {_number(v, '.3f')}" for k, v in line[each].items())
            parts.append(f"{name} {_number(line[mean], '.4f')} ({detail})")
    return "  ".join(parts) if len(parts) > 1 else parts[0] + " nothing to evaluate"


def ranking(rows: list[LabelRecord], by: str) -> str:
    """Labels from high to low; a long list keeps both ends and says how many lie between."""
    ordered = sorted(rows, key=lambda r: (-getattr(r, by), r.label))
    words = [f"{r.label} {getattr(r, by):.3g}" for r in ordered]
    if len(words) > 2 * RANKED + 1:
        words[RANKED:-RANKED] = [f"... {len(words) - 2 * RANKED} more ..."]
    return " > ".join(words)


def decision_block(record: DecisionRecord) -> str:
    """What was decided: tokens, theta as bars, labels ranked by weight (by chosen share where no agent gave weights), notes."""
    lines = [
        f"  round {record.round} at step {record.step}: {record.selection} chose {count(record.chosen)} samples, "
        f"{count(record.chosen_tokens)} of {count(record.budget_tokens)} tokens asked for, {record.reused} used before, "
        f"in {duration(sum(record.seconds.values()))}"
    ]
    names = [*record.theta, *record.labels]
    width = max(map(len, names), default=0)
    for agent, theta in record.theta.items():
        bar = "#" * round(BAR * min(max(theta, 0.0), 1.0))
        lines.append(f"    theta {agent:<{width}}  {bar:<{BAR}} {theta:.3f}")
    by = "weight" if record.theta else "chosen_share"
    for agent, rows in record.labels.items():
        lines.append(f"    {'label' if record.theta else 'share'} {agent:<{width}}  {ranking(rows, by)}")
    lines += [f"    note: {note}" for note in record.notes]
    return "\n".join(lines)


class Progress:
    """Prints on rank 0; `enabled=False` keeps every call silent.

    total_steps: of the whole run; first_step: the step this process started from (the ETA counts only steps it has seen)
    """

    def __init__(self, total_steps: int, first_step: int = 0, enabled: bool = True, stream: TextIO | None = None):
        self.total_steps, self.first_step, self.enabled = total_steps, first_step, enabled
        self._stream = sys.stdout if stream is None else stream
        self._seconds = 0.0

    def message(self, text: str) -> None:
        if self.enabled:
            print(printable(text), file=self._stream, flush=True)

    def metrics(self, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl; phases are left to the report."""
        kind = line["kind"]
        if kind == "train":
            self._seconds += line["seconds"]
            done = line["step"] - self.first_step
            eta = self._seconds / done * (self.total_steps - line["step"]) if done > 0 else None
            self.message(train_line(line, self.total_steps, eta))
        elif kind == "eval":
            self.message(eval_line(line))
        elif kind == "end":
            self.message(f"done: {line['steps']} steps, {count(line['tokens'])} tokens in {duration(line['seconds'])}")

    def decision(self, record: DecisionRecord) -> None:
        self.message(decision_block(record))
