"""Reads 10,000 damaged inputs of every format, and counts what came out: the generator and the judge are those of tests/fuzz.

    python -m benchmarks.fuzz > table.md

Run from the repository root; `pip install -e '.[test]'` brings what writes the inputs. Each kind of damage and format has a
process of its own, whose address space is limited and whose peak memory is measured. Exit status 1 if anything is wrong. The
table: fuzz.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
ADDRESS_SPACE = 4 << 30
COUNTS = {"huge": 8, "bomb": 10}  # they take seconds each


def group(damage: str, format: str, count: int) -> dict:
    """Read inputs 0 to count - 1 of a kind in this process."""
    sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS)]
    from fuzz_judge import read_and_judge

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    total = {"inputs": 0, "accepted": 0, "altered": 0, "slowest": 0.0, "raised": 0, "problems": []}
    rejected: Counter[str] = Counter()
    for seed in range(count):
        folder = Path(tempfile.mkdtemp())
        total["inputs"] += 1
        try:
            verdict = read_and_judge(damage, format, seed, folder)
        except Exception as error:  # whatever it is, it is what this program looks for
            total["raised"] += 1
            total["problems"].append(f"{damage}, {format}, {seed}: {type(error).__name__}: {error}")
            continue
        finally:
            shutil.rmtree(folder)
        total["problems"] += verdict.problems
        total["accepted"] += verdict.accepted
        total["altered"] += verdict.altered
        rejected += verdict.rejected
        total["slowest"] = max(total["slowest"], verdict.seconds)
    return total | {"rejected": rejected, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def table(count: int, only: str | None) -> bool:
    """Print one row a kind; whether all was as it should be."""
    sys.path.insert(0, str(TESTS / "fuzz"))
    from fuzz_inputs import DAMAGES

    print("| damage | format | inputs | accepted | altered | rejected by kind | raised | crashes | peak MiB | slowest, CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    sums, problems = Counter(), []
    for damage, formats in DAMAGES.items():
        for format in formats:
            if only not in (None, damage):
                continue
            command = [sys.executable, "-m", "benchmarks.fuzz", "--group", damage, format, str(COUNTS.get(damage, count))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sums["crashes"] += 1
                problems.append(f"{damage}, {format}: exit {done.returncode}: {done.stderr[-500:]}")
                print(f"| {damage} | {format} | | | | | | 1 | | |", flush=True)
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            problems += row["problems"]
            kinds = ", ".join(f"{n:,} {reason}" for reason, n in sorted(row["rejected"].items()))
            sums.update({key: row[key] for key in ("inputs", "accepted", "altered", "raised")})
            sums["rejected"] += sum(row["rejected"].values())
            print(
                f"| {damage} | {format} | {row['inputs']} | {row['accepted']:,} | {row['altered']:,} | {kinds} | {row['raised']} "
                f"| 0 | {row['peak']:.0f} | {row['slowest']:.2f} |",
                flush=True,
            )
    print(
        f"\n{sums['inputs']:,} inputs, {sums['accepted']:,} documents accepted ({sums['altered']:,} altered), "
        f"{sums['rejected']:,} rejected, {sums['raised']} raised, {sums['crashes']} crashes, {len(problems)} problems"
    )
    for problem in problems[:50]:
        print(f"- {problem}")
    return not problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=150, help="inputs of a kind; of bombs and huge documents fewer")
    parser.add_argument("--only", help="one kind of damage")
    parser.add_argument("--group", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.group:
        damage, format, count = arguments.group
        print(json.dumps(group(damage, format, int(count))))
    elif not table(arguments.count, arguments.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
