"""Which layouts of the four models of the paper fit: the table of docs/doctor.md.

    python benchmarks/doctor_table.py [--write docs/doctor.md]

Arithmetic only: a few seconds on a CPU. --write puts the table between the file's two marks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mads.config.compose import compose
from mads.config.validate import validate
from mads.doctor.estimate import GIB, Cluster, estimates, fullest

MODELS = {"373M": "paper_373m", "1.3B": "paper_1b3", "3.6B": "paper_3b6", "8B": "paper_8b"}
TP, PP, CP = (f"parallel.{axis}_parallel_size" for axis in ("tensor_model", "pipeline_model", "context"))
SP, AC = "parallel.sequence_parallel=true", "parallel.activation_checkpointing"
LAYOUTS = {
    "zero1": ["parallel=zero1"],
    "zero1, selective": ["parallel=zero1", f"{AC}=selective"],
    "zero3, full": ["parallel=zero3", f"{AC}=full"],
    "tp2 sp, zero1, selective": ["parallel=tp2_sp", f"{AC}=selective"],
    "tp8 sp, zero1, selective": ["parallel=zero1", f"{TP}=8", SP, f"{AC}=selective"],
    "tp2 sp, pp2, zero1, selective": ["parallel=3d", f"{AC}=selective"],
    "tp4 sp, pp2, zero1, selective": ["parallel=zero1", f"{TP}=4", SP, f"{PP}=2", f"{AC}=selective"],
    "cp2, zero3, selective": ["parallel=zero3", f"{CP}=2", f"{AC}=selective"],
}
COMMON = ["data=prepared", "data.dir=corpus", "data.seq_length=2048", "train.micro_batch_size=2", "train.global_batch_size=512"]
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def cell(model: str, layout: list[str], nodes: int, selection: str) -> str:
    """GiB of the fullest GPU, and which sizes hold it."""
    config = compose([*COMMON, f"model={model}", f"selection={selection}", *layout])
    cluster = Cluster(nodes, 8, 80 * GIB)
    validate(config, cluster.world_size, has_gpu=True)
    peak = fullest(estimates(config, cluster)).peak
    fits = "40, 80" if peak <= 40 * GIB else "80" if peak <= 80 * GIB else "-"
    return f"{peak / GIB:.1f} ({fits})"


def table() -> str:
    """In Markdown: a row for each layout and number of nodes, a column for each model, without and with rewards."""
    lines = []
    for selection, words in (("random", "Without rewards (selection=random)"), ("mads", "With rewards (selection=mads)")):
        lines += [f"{words}:", "", "| layout | nodes | " + " | ".join(MODELS) + " |", "|---|---|" + "---|" * len(MODELS)]
        for name, layout in LAYOUTS.items():
            for nodes in (1, 4):
                cells = [cell(model, layout, nodes, selection) for model in MODELS.values()]
                lines.append(f"| {name} | {nodes} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Print the table, or put it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    write = parser.parse_args().write
    text = table()
    if write is None:
        print(text)
        return
    before, rest = write.read_text().split(BEGIN)
    write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
