"""Records of long studies that may be stopped: what was measured is in a JSON file, and is not measured again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def opened(out: Path, fixed: dict[str, Any], empty: dict[str, Any], refuse: Callable[[str], NoReturn]) -> dict[str, Any]:
    """The record of `out`, or a new one of `empty` with `fixed` as its arguments; one of other arguments is refused."""
    record = json.loads(out.read_text()) if out.exists() else {"arguments": fixed, **empty}
    if record["arguments"] != fixed:
        refuse(f"{out} was made with {record['arguments']}; choose another --out")
    return record


def keeper(record: dict[str, Any], out: Path) -> Callable[[str, str, Callable[[], Any]], None]:
    """keep(section, key, compute): what the record lacks is computed, the record written to `out`, and the time said."""

    def keep(section: str, key: str, compute: Callable[[], Any]) -> None:
        if key not in record[section]:
            started = time.process_time()
            record[section][key] = compute()
            out.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{time.process_time() - started:7.1f} s  {section} {key}", file=sys.stderr, flush=True)

    return keep
