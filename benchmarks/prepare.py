"""Preparation: killed three times it gives the same bytes; and its speed against SentencePiece alone and against datatrove.

    python -m benchmarks.prepare kills CORPUS REFERENCES --shard-megabytes 8
    python -m benchmarks.prepare speed CORPUS REFERENCES --peer PYTHON_WITH_DATATROVE

CORPUS is a folder of JSON lines with `text` and `domain`, REFERENCES one of TASK.jsonl.gz. Run from the repository root. Speed
is in megabytes of text per second of CPU time over all processes, which a busy machine falsifies less than the time on the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mads.data.documents import JsonlSource
from mads.data.rejects import Rejects
from mads.data.tokenizer import Tokenizer

TOKENIZER_ONLY = "~data/attributes"


def command(corpus: Path, references: Path, directory: Path, workers: int, *overrides: str) -> list[str]:
    """A `mads prepare` of the corpus."""
    tasks = ", ".join(f"{p.name.split('.')[0]}: {p}" for p in sorted(references.glob("*.jsonl*")))
    return [
        *(sys.executable, "-m", "mads.cli", "prepare", "--workers", str(workers), "data=jsonl", f"data.paths=[{corpus}]"),
        *(f"data.reference_paths={{{tasks}}}", f"data.dir={directory}", *overrides),
    ]


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def kills(arguments: argparse.Namespace, folder: Path) -> None:
    """Prepare undisturbed, then with a SIGKILL of the whole process group at three random moments, and compare."""
    overrides = [f"data.shard_megabytes={arguments.shard_megabytes}"]
    start = time.monotonic()
    subprocess.run(command(arguments.corpus, arguments.references, folder / "whole", 2, *overrides), check=True)
    seconds = time.monotonic() - start
    print(f"undisturbed: {seconds:.0f} s")
    draw = random.Random(arguments.seed)
    for number in range(3):
        process = subprocess.Popen(
            command(arguments.corpus, arguments.references, folder / "killed", 2, *overrides), start_new_session=True
        )
        pause = draw.uniform(0.05, 0.45) * seconds
        try:
            process.wait(pause)
            print(f"kill {number + 1}: it had ended before {pause:.0f} s")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done = sorted(p.name for p in (folder / "killed/work/done").glob("*-?????"))
            print(f"kill {number + 1} after {pause:.0f} s: {len(done)} tasks were done, the last {done[-1:] or 'none'}")
    subprocess.run(command(arguments.corpus, arguments.references, folder / "killed", 2, *overrides), check=True)
    one, other = hashes(folder / "whole"), hashes(folder / "killed")
    different = sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
    print(f"{len(one)} files undisturbed, {len(other)} after three kills; different: {different or 'none'}")
    if different:
        sys.exit(1)


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measured(what: str, megabytes: float, documents: int, run) -> None:
    """Print a row of the table."""
    cpu, wall = cpu_seconds(), time.monotonic()
    run()
    cpu, wall = cpu_seconds() - cpu, time.monotonic() - wall
    print(f"| {what} | {cpu:.1f} | {megabytes / cpu:.2f} | {documents / cpu:,.0f} | {wall:.1f} |", flush=True)


PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    corpus, tokenizer, out = sys.argv[1:]
    reader = JsonlReader(corpus, compression="gzip")
    writer = DocumentTokenizer(out, tokenizer_name_or_path=tokenizer, eos_token="</s>", shuffle_documents=False)
    LocalPipelineExecutor([reader, writer], tasks=1, workers=1, logging_dir=out + "-logs").run()
"""


def speed(arguments: argparse.Namespace, folder: Path) -> None:
    """Rows: what is measured, CPU seconds, MB and documents per CPU second, seconds on the clock."""
    documents = list(JsonlSource([str(arguments.corpus)]).documents(Rejects()))
    texts = [d.text for d in documents]
    size, count = sum(len(t.encode()) for t in texts) / 1e6, len(texts)
    print(f"{count:,} documents, {size:.1f} MB of text\n", flush=True)
    common = ["data.hygiene.decontaminate=false", "data.shard_megabytes=8"]
    subprocess.run(command(arguments.corpus, arguments.references, folder / "first", 1, TOKENIZER_ONLY, *common), check=True)
    model = folder / "first" / "tokenizer.model"
    given = [f"data.tokenizer.path={model}", *common]
    print("| | CPU s | MB/CPU s | documents/CPU s | s |\n|---|---|---|---|---|", flush=True)
    tokenizer = Tokenizer.open(model)
    batches = [texts[i : i + 400] for i in range(0, count, 400)]
    measured("SentencePiece alone, one thread, text in memory", size, count, lambda: [tokenizer.encode(b) for b in batches])

    def prepare(workers: int, *overrides: str, corpus: Path = arguments.corpus) -> None:
        directory = folder / "out"
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run(
            command(corpus, arguments.references, directory, workers, *overrides), check=True, stdout=subprocess.DEVNULL
        )

    few = folder / "few"
    few.mkdir(exist_ok=True)
    (few / "few.jsonl").write_text("".join(json.dumps({"text": t, "domain": "few"}) + "\n" for t in texts[:20]))
    measured("mads prepare, 1 worker, 20 documents: start-up", 0, 20, lambda: prepare(1, TOKENIZER_ONLY, *given, corpus=few))
    for workers in (1, 2):
        what = f"mads prepare, {workers} worker(s): everything but labels"
        measured(what, size, count, lambda w=workers: prepare(w, TOKENIZER_ONLY, *given))
    for workers in (1, 2):
        measured(f"mads prepare, {workers} worker(s), default labellers", size, count, lambda w=workers: prepare(w, *given))
    if arguments.peer:
        peer(arguments, folder, texts, size, count)

    decontaminated = [o for o in given if "decontaminate" not in o]
    measured("mads prepare, no labels, decontaminated", size, count, lambda: prepare(1, TOKENIZER_ONLY, *decontaminated))
    near = "data.hygiene.near_duplicates=0.8"
    measured("mads prepare, no labels, near-duplicates at 0.8", size, count, lambda: prepare(1, TOKENIZER_ONLY, near, *given))


def peer(arguments: argparse.Namespace, folder: Path, texts: list[str], size: float, count: int) -> None:
    """datatrove's reader and tokeniser on the same files, with a byte-level BPE of as many ids trained on the same text."""
    import tokenizers

    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts[::16], vocab_size=4096, special_tokens=["</s>"], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    script = folder / "peer.py"
    script.write_text(PEER)
    run = [arguments.peer, script, arguments.corpus, folder / "tokenizer.json", folder / "peer"]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    single = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    batches = [texts[i : i + 400] for i in range(0, count, 400)]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    measured("Hugging Face tokenizers alone, one thread", size, count, lambda: [single.encode_batch(b) for b in batches])
    measured(
        "datatrove, 1 worker: reading and tokenising",
        size,
        count,
        lambda: subprocess.run([str(x) for x in run], check=True, env=environment, stderr=subprocess.DEVNULL),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "speed"])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--shard-megabytes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--peer", help="a Python that has datatrove")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder that is removed")
    arguments = parser.parse_args()
    print(json.dumps({"python": sys.version.split()[0], "cores": os.cpu_count()}))
    run = {"kills": kills, "speed": speed}[arguments.what]
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        run(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
