"""Several processes, interruptions at any point, and additions: the bytes are those of one undisturbed run."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from command_support import environment, wait_until

from mads.data.documents import JsonlSource
from mads.data.pool import Pool, key_path
from mads.data.prepare import default_workers, prepare, workers
from mads.data.prepare.board import Board
from mads.data.references import JsonlReferences
from mads.data.schema import DataError, Manifest
from mads.data.settings import PrepareSettings
from mads.data.split import text_keys
from mads.label.domain import DomainLabeller
from mads.label.given import GivenLabel, GivenScore

WORDS = "rain fell softly over the old harbour while boats turned and import numpy return self value budget vote law 7 42".split()


def write_part(path, seed, count=40, domain="news", texts=None):
    """JSON lines with a score from 0 to 5 and a topic."""
    rng = np.random.default_rng(seed)
    texts = texts or [" ".join(rng.choice(WORDS, rng.integers(12, 120))) + f" #{seed}-{i}" for i in range(count)]
    rows = [
        {"text": text, "domain": domain, "score": 5.0 if i == 0 else float(rng.random() * 5), "topic": int(rng.integers(0, 3))}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


def write_corpus(tmp_path):
    """Three files of different sizes, with bad lines and a duplicate; reference examples too short to be looked for."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_part(folder / "a.jsonl", 1, 70)
    write_part(folder / "b.jsonl", 2, 25, "code")
    write_part(folder / "c.jsonl", 3, 50, "code")
    with open(folder / "b.jsonl", "a") as file:
        first = json.loads((folder / "a.jsonl").read_text().splitlines()[0])
        file.write(json.dumps(first | {"score": 1.0}) + "\nnot json\n" + json.dumps(first | {"score": None}) + "\n")
    examples = "".join(json.dumps({"text": f"the harbour lies in district {i}"}) + "\n" for i in range(30))
    (tmp_path / "task.jsonl").write_text(examples)
    return folder


def labellers():
    return {
        "domain": DomainLabeller(),
        "quality": GivenScore("score", [0, 1, 2, 3, 4, 5]),
        "topic": GivenLabel("topic"),
    }


def run(tmp_path, name, paths=None, lines=None, workers=1, append=False, **changes):
    base = dict(vocab_size=320, seq_length=32, min_sample_tokens=8, heldout_fraction=0.1, shard_megabytes=0.008, seed=3)
    return prepare(
        tmp_path / name,
        JsonlSource([str(p) for p in paths or [tmp_path / "corpus"]], attribute_fields=["score", "topic"]),
        labellers(),
        JsonlReferences({"task": str(tmp_path / "task.jsonl")}),
        PrepareSettings(**{**base, "max_rejected_fraction": 0.1, **changes}),
        progress=(lines if lines is not None else []).append,
        workers=workers,
        append=append,
    )


def hashes(directory):
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("mads.data.prepare.job._GROUP_BYTES", 1)  # spawned workers have their own: the order must not matter
    run(tmp_path, "one")
    lines = []
    run(tmp_path, "two", workers=2, lines=lines)
    run(tmp_path, "three", workers=3)
    expected = hashes(tmp_path / "one")
    assert hashes(tmp_path / "two") == expected == hashes(tmp_path / "three")
    assert len([n for n in expected if n.startswith("train/shard") and n.endswith(".bin")]) > 3
    assert any("tokenised and labelled shard" in line for line in lines) and "fingerprint" in lines[-1]
    manifest = Manifest.read(tmp_path / "one", verify=True)
    assert manifest.rejected == {"malformed JSON": 1, "wrong type": 1} and manifest.removed == {"duplicate": 1}
    (removed,) = map(json.loads, (tmp_path / "one/removed.jsonl").read_text().splitlines())
    assert removed == {"reason": "duplicate", "origin": "b.jsonl", "line": 26, "detail": "same text as a.jsonl:1"}


def test_the_attribute_fields_of_a_record_become_its_labels(tmp_path, corpus):
    run(tmp_path, "out")
    expected = [
        json.loads(line) for name in "abc" for line in (corpus / f"{name}.jsonl").read_text().splitlines() if line[0] == "{"
    ]
    expected = list(
        {row["text"]: row for row in reversed(expected) if row["score"] is not None}.values()
    )  # the first of equal ones
    scores = sorted({np.float32(row["score"]) for row in expected})
    pools = [Pool.open(tmp_path / "out", part) for part in ("train", "heldout")]
    assert sorted({v for pool in pools for v in np.asarray(pool.values("quality"))}) == scores
    for pool in pools:
        bins = np.minimum(np.floor(np.asarray(pool.values("quality"))), 4)  # exactly 5.0 is in the last bin
        assert np.array_equal(np.asarray(pool.codes("quality")), bins)
        assert pool.labels("topic") == ("0", "1", "2")


START = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_prepare_processes import run
if __name__ == "__main__":
    run(Path({folder!r}), "out", workers=2)
"""


def start(tmp_path):
    (tmp_path / "job.py").write_text(START.format(path=sys.path, folder=str(tmp_path)))
    log = open(tmp_path / "log", "ab")
    return subprocess.Popen(
        [sys.executable, tmp_path / "job.py"], stdout=log, stderr=log, env=environment(), start_new_session=True
    )


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("task", ["survey-00000", "fit-00000", "shards-00001", "seal-00000"])
def test_k5_killed_at_any_stage_the_same_command_gives_the_same_bytes(tmp_path, corpus, task):
    run(tmp_path, "whole")
    process, work = start(tmp_path), tmp_path / "out" / "work"
    claimed = work / "claims" / task
    wait_until(lambda: claimed.exists() or (work / "done" / task).exists() or process.poll() is not None, f"no claim {task}")
    kill(process)
    if (tmp_path / "out/manifest.json").exists():  # it was quicker than we: the kill came after the end
        assert task == "seal-00000"
    run(tmp_path, "out")
    found = hashes(tmp_path / "out")
    assert found == hashes(tmp_path / "whole"), (tmp_path / "log").read_text()


def test_two_commands_share_the_work_and_one_may_be_killed(tmp_path, corpus):
    run(tmp_path, "whole")
    other = start(tmp_path)
    wait_until(lambda: (tmp_path / "out/work/job.json").exists(), "the other command did not begin")
    run(tmp_path, "out")
    assert other.wait(60) == 0, (tmp_path / "log").read_text()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_the_error_of_a_worker_ends_all_with_its_message(tmp_path, corpus):
    with pytest.raises(DataError, match="vocab_size=9000 is more than the training text can fill"):
        run(tmp_path, "out", workers=2, vocab_size=9000)
    assert not (tmp_path / "out/manifest.json").exists() and not Board(tmp_path / "out").others()


def test_workers_end_with_the_first_process(tmp_path, corpus):
    process = start(tmp_path)
    wait_until(lambda: len(_group(process.pid)) >= 3, "no workers")
    members = _group(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not _group(process.pid), f"left of {members}: {_group(process.pid)}", 20)
    assert _group(process.pid) == []


def _group(pgid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == pgid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def check_a_changed_source_is_an_error():
    import mads.data.prepare.stages as stages

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        corpus = write_corpus(Path(folder))

        def edit(job, index, scratch, tally, plan=stages._RUN["plan"]):
            notes = plan(job, index, scratch, tally)
            text = (corpus / "c.jsonl").read_text()
            (corpus / "c.jsonl").write_text(text.replace("harbour", "hArbour", 1))
            return notes

        patch.setitem(stages._RUN, "plan", edit)
        with pytest.raises(DataError, match=r"the source changed while it was read, at c.jsonl:\d+"):
            run(Path(folder), "out")


def test_a_source_that_changes_under_way_is_an_error():
    check_a_changed_source_is_an_error()


# ---------------------------------------------------------------- additions


@pytest.mark.parametrize("megabytes, cores, workers", [(0.1, 8, 1), (9, 8, 2), (100, 8, 8), (100, 1, 1)])
def test_processes_are_started_where_they_pay(tmp_path, megabytes, cores, workers):
    with open(tmp_path / "big.jsonl", "wb") as file:
        file.truncate(int(megabytes * 1e6))
    assert default_workers(JsonlSource([str(tmp_path / "big.jsonl")]), cores) == workers


def test_d7_an_addition_leaves_every_file_as_it_was(tmp_path, corpus):
    first = run(tmp_path, "out")
    before = hashes(tmp_path / "out")
    pool = Pool.open(tmp_path / "out", "train")
    old_ids, old_tokens = np.asarray(pool.ids), [t.tobytes() for t in pool.tokens(np.arange(len(pool)))]
    rows = write_part(tmp_path / "more.jsonl", 9, 60)
    repeated = [json.loads(line)["text"] for line in (corpus / "a.jsonl").read_text().splitlines()[:5]]
    write_part(tmp_path / "again.jsonl", 10, texts=[*repeated, rows[3]["text"]])
    paths, lines = [tmp_path / "more.jsonl", tmp_path / "again.jsonl"], []
    second = run(tmp_path, "out", paths, append=True, workers=2, lines=lines)
    after = hashes(tmp_path / "out")
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"manifest.json"} and "removed-0001.jsonl" in after and not any("work" in n for n in after)
    assert second.generations[0] == first.generations[0] and len(second.generations) == 2
    assert second.generations[1]["removed"] == {"duplicate": 6}
    details = [json.loads(line)["detail"] for line in (tmp_path / "out/removed-0001.jsonl").read_text().splitlines()]
    assert (
        details.count("same text as a document that the directory has already") == 5
        and details[5] == "same text as again.jsonl:6"
    )
    new = Pool.open(tmp_path / "out", "train")
    assert np.array_equal(np.asarray(new.ids)[: len(old_ids)], old_ids) and len(new) > len(old_ids)
    assert [t.tobytes() for t in new.tokens(np.arange(len(old_ids)))] == old_tokens
    added = sum(second.parts[part]["documents"] - first.parts[part]["documents"] for part in ("train", "heldout"))
    assert added == 60 and second.parts["heldout"]["documents"] > first.parts["heldout"]["documents"]
    assert Manifest.read(tmp_path / "out", verify=True) == second
    # the same addition again changes nothing
    again = run(tmp_path, "out", paths, append=True, lines=lines)
    assert again == second and "has these documents already, as generation 1" in lines[-1]
    assert hashes(tmp_path / "out") == after


def test_a_killed_addition_leaves_the_old_generation_and_goes_on(tmp_path, corpus, monkeypatch):
    first = run(tmp_path, "out")
    run(tmp_path, "whole")
    write_part(tmp_path / "more.jsonl", 9, 60)
    run(tmp_path, "whole", [tmp_path / "more.jsonl"], append=True)

    class Interrupted(Exception):
        pass

    def interrupted(self, documents):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GivenScore, "label", interrupted)
        run(tmp_path, "out", [tmp_path / "more.jsonl"], append=True)
    assert Manifest.read(tmp_path / "out", verify=True) == first
    assert run(tmp_path, "out") == first  # and is complete for who does not add
    run(tmp_path, "out", [tmp_path / "more.jsonl"], append=True)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def check_equal_texts_stay_on_their_side():
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = write_corpus(Path(folder)), Path(folder) / "out"
        run(Path(folder), "out", exact_duplicates=False)
        texts = [json.loads(line)["text"] for line in (corpus / "a.jsonl").read_text().splitlines()]
        shards = range(len(Manifest.read(out).parts["train"]["shards"]))
        trained = {key for shard in shards for key in np.load(key_path(out, "train", shard))[:, 0].tolist()}
        # Some of these would be held out by their own hash, if they came alone.
        write_part(Path(folder) / "again.jsonl", 10, texts=[t for t in texts if text_keys(t.encode())[0] in trained])
        run(Path(folder), "out", [Path(folder) / "again.jsonl"], append=True, exact_duplicates=False)
        shards = range(len(Manifest.read(out).parts["train"]["shards"]))
        train, held = (
            {key for shard in shards for key in np.load(key_path(out, part, shard))[:, 0].tolist()}
            for part in ("train", "heldout")
        )
        assert train and held and not train & held


def test_equal_texts_of_an_addition_stay_on_their_side():
    check_equal_texts_stay_on_their_side()


def check_an_interrupted_preparation_ends_with_the_same_bytes():
    """One that stops in the middle of its second shard."""

    class Interrupted(Exception):
        pass

    calls = []

    def interrupted(self, documents, label=GivenScore.label):
        calls.append(1)
        if len(calls) == 3:  # fitting is the first call
            raise Interrupted
        return label(self, documents)

    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        run(Path(folder), "whole")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(GivenScore, "label", interrupted)
            run(Path(folder), "out")
        run(Path(folder), "out")
        assert hashes(Path(folder) / "out") == hashes(Path(folder) / "whole")


def test_k5_an_interrupted_preparation_ends_with_the_same_bytes():
    check_an_interrupted_preparation_ends_with_the_same_bytes()


def test_an_addition_may_bring_labels_behind_those_that_there_are(tmp_path, corpus):
    first = run(tmp_path, "out")
    labels = {a.name: a.labels for a in first.attributes}
    rows = write_part(tmp_path / "more.jsonl", 9, 60, "aardvarks")  # first by the alphabet, last by its code
    rows[7]["topic"] = 41
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_part(tmp_path / "third.jsonl", 12, 40, "zebras")
    lines: list[str] = []
    run(tmp_path, "out", [tmp_path / "more.jsonl"], append=True, workers=2, lines=lines)
    third = run(tmp_path, "out", [tmp_path / "third.jsonl"], append=True)  # knows what the second generation brought
    assert any("attribute domain has 1 further labels: aardvarks" in line for line in lines)
    new = {a.name: a.labels for a in third.attributes}
    assert new["domain"] == (*labels["domain"], "aardvarks", "zebras") and new["topic"] == (*labels["topic"], "41")
    assert new["quality"] == labels["quality"]
    pool, old = Pool.open(tmp_path / "out"), Pool.open(tmp_path / "out", shards=len(first.parts["train"]["shards"]))
    assert old.labels("domain") == labels["domain"] and pool.labels("domain") == new["domain"]
    codes = np.asarray(pool.codes("domain"))
    assert np.array_equal(codes[: len(old)], old.codes("domain")[:]) and set(codes[len(old) :]) == {2, 3}
    assert (np.asarray(pool.codes("topic")) == 3).sum() >= 1


def test_an_addition_needs_a_directory_and_its_settings(tmp_path, corpus):
    with pytest.raises(DataError, match="no manifest.json"):
        run(tmp_path, "out", append=True)
    run(tmp_path, "out")
    write_part(tmp_path / "more.jsonl", 9, 20)
    with pytest.raises(DataError, match=r"settings.seq_length: 32 there, 48 asked for"):
        run(tmp_path, "out", [tmp_path / "more.jsonl"], append=True, seq_length=48)
    with pytest.raises(DataError, match="nothing is left of 70 documents: 70 duplicate"):
        run(tmp_path, "out", [corpus / "a.jsonl"], append=True)


# ---------------------------------------------------------------- hygiene


def test_near_duplicates_and_contaminated_documents_are_removed_and_listed(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(500)]
    texts = [" ".join(rng.choice(vocabulary, 100)) for _ in range(40)]
    texts[7] = texts[2].rsplit(" ", 3)[0] + " but not the end"
    examples = [" ".join(rng.choice(vocabulary, 30)) for _ in range(30)]
    texts[11] = texts[11] + " " + " ".join(examples[4].split()[5:18]) + " and so on"
    texts[12] = texts[12] + " " + " ".join(examples[4].split()[5:17]) + " and so on"  # twelve words are not enough
    texts[13] = "Quoted. " + "evaluate this sentence of a good dozen words that nobody must see before the test"
    (tmp_path / "corpus").mkdir()
    write_part(tmp_path / "corpus/a.jsonl", 1, texts=texts)
    (tmp_path / "task.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in examples))
    held = {"text": "Evaluate this sentence of a good dozen words, that nobody must see before the test!"}
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(held) + "\n")
    more = dict(near_duplicates=0.8, evaluation_paths={"secret": str(tmp_path / "evaluation.jsonl")})
    lines = []
    manifest = run(tmp_path, "out", lines=lines, vocab_size=282, **more)
    assert manifest.removed == {"contaminated": 2, "near duplicate": 1} and manifest.rejected == {}
    found = [json.loads(line) for line in (tmp_path / "out/removed.jsonl").read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in found] == [(8, "near duplicate"), (12, "contaminated"), (14, "contaminated")]
    assert found[0]["detail"].endswith("to a.jsonl:3") and "task task-5" in found[1]["detail"] and "secret" in found[2]["detail"]
    assert manifest.generations[0]["contamination"]["secret"]["documents"] == 1
    assert any("contamination by secret: 1 documents hold 1 of 1 examples" in line for line in lines)
    plain = run(tmp_path, "plain", vocab_size=282, decontaminate=False)
    assert plain.removed == {} and sum(plain.parts[p]["documents"] for p in plain.parts) == 40
    assert sum(manifest.parts[p]["documents"] for p in manifest.parts) == 37


def test_ctrl_c_while_a_worker_is_started_comes_afterwards():
    """To this thread, because another one might take it."""
    before, reached = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt):
            with workers._interrupts_held():
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
                code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
                child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
                reached.append(child.stdout.strip())
        assert reached == ["True"]  # held here, and in what is started
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(signal.SIGINT, before)
