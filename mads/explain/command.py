"""`mads explain RUN --sample ID --round R`."""

from __future__ import annotations

import argparse
import json

from mads.data.schema import SHARD_SHIFT, DataError
from mads.explain.replay import replay
from mads.explain.verdict import Explainer, as_text


def sample_id(text: str) -> int:
    """A sample's id from itself or from "shard:row".

    Raises:
        DataError: text that is neither.
    """
    shard, colon, row = text.partition(":")
    if not shard.isdecimal() or (colon and not row.isdecimal()):
        raise DataError(f"--sample {text!r} is neither a sample's id, as in decisions/round-N.npy, nor shard:row")
    if colon and int(row) >= 1 << SHARD_SHIFT or int(shard) >= 1 << (63 - SHARD_SHIFT if colon else 63):
        raise DataError(f"--sample {text!r} is greater than any sample's id")
    return (int(shard) << SHARD_SHIFT) + int(row) if colon else int(shard)


def explain_command(arguments: list[str]) -> int:
    """The command line; returns 0.

    Raises:
        DataError, ConfigError: as `mads.explain.replay.replay` and `Explainer.explain`.
    """
    parser = argparse.ArgumentParser(
        prog="mads explain",
        description="Decide a round of a run again from its folder and tell why a sample was or was not chosen.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--sample", required=True, metavar="ID", help="a sample's id, or shard:row")
    parser.add_argument("--round", required=True, type=int, metavar="R", help="round, from 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--data", metavar="DIR", help="the prepared data, if it is no longer where the run's config.yaml says")
    options = parser.parse_args(arguments)
    id_ = sample_id(options.sample)
    explanation = Explainer(replay(options.run, options.round, options.data)).explain(id_)
    print(json.dumps(explanation.to_json(), allow_nan=False) if options.json else as_text(explanation))
    return 0
