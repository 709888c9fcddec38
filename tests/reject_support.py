"""What tests ask a list of rejects."""

import re

_RANGE = re.compile(r"(\d+) to (\d+)(?:: |$)")


def rejected_lines(rejects) -> list[tuple[str, int]]:
    """(reason, line) of every line in the list, ranges written out; in the order of the list."""
    found = []
    for reason, _, line, detail in rejects:
        match = _RANGE.match(detail)
        last = int(match[2]) if match and int(match[1]) == line else line
        found += [(reason, n) for n in range(line, last + 1)]
    return found
