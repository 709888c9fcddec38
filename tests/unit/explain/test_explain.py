"""`mads explain`: every sample of a round is explained as it was decided, and what cannot be explained is refused."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from explain_support import light_run
from omegaconf import OmegaConf
from support import make_pool

from mads.console.order import HashOrder
from mads.console.recipe import Recipe
from mads.console.record import DecisionHeader
from mads.console.strategy import RandomStrategy
from mads.data.schema import DataError
from mads.explain.command import sample_id
from mads.explain.replay import replay
from mads.explain.verdict import Explainer, as_text
from mads.logging.decisions import decision_path, read_decision, write_decision

SHORT = ["selection.interval=2", "train.global_batch_size=4", "train.micro_batch_size=4"]
OTHER_AGENTS = [
    "agents.members.curve={_target_: mads.agents.ContinuousAgent, attribute: quality, bins: 4}",
    "agents.members.pair={_target_: mads.agents.JointCellAgent, attributes: [domain, topic]}",
    "agents.members.novel={_target_: mads.agents.NoveltyAgent, attributes: [domain]}",
    "selection.probes=90",
]
PAPER = ["selection=paper", "selection.probes_per_agent=30"]
CASES = {
    "random": (["selection=random"], 2),
    "stratified": (["selection=stratified", "selection.attribute=domain", "selection.shares=uniform"], 1),
    "paper random": (PAPER, 0),
    "paper": (PAPER, 3),
    "mads warm-up": ([], 0),
    "mads prior": (["agents.members.likeness.prior=3"], 0),
    "mads": (["selection.selector=gumbel"], 3),
    "mads by shares": (["selection.temperature=0.5", "selection.share_floor=0.2"], 3),
    "threshold": (["selection.exchange=threshold", *OTHER_AGENTS], 3),
    "bounds": (["selection.bounds={domain: {news: [0.5, 0.6], code: [0, 0.1]}}", "selection.max_uses=2"], 3),
    "minima": (["selection.bounds={domain: {news: [0.6, 1.0], code: [0.4, 1.0]}}", "selection.exchange=threshold"], 2),
    "bounds by top-k": ([*PAPER, "selection.bounds={domain: {books: [0.2, 0.3]}}", "selection.max_uses=1"], 2),
    "parts": (["selection.bounds.domain=0.9"], 1),
    "shards": ([*PAPER, "selection.unit=shard"], 2),
    "random shards": (["selection=random", "selection.unit=shard", "selection.max_uses=1"], 2),
    "everything": (["selection=random", "selection.interval=60"], 0),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    make_pool(folder / "data", documents=30, shard_tokens=450)
    return folder / "data"


def explained(run, round_, seen, positions=None):
    """Explanations of a round's samples (all, if no positions are given), held to what the run saw."""
    replayed = replay(run, round_)
    explainer, pool = Explainer(replayed), replayed.pool
    assert np.array_equal(replayed.uses, seen.uses)
    place, step_of = {i: p for p, i in enumerate(seen.ids.tolist())}, {i: s for s, ids in seen.steps.items() for i in ids}
    found = []
    for position in range(len(pool)) if positions is None else positions:
        id_ = int(pool.ids[position])
        e = explainer.explain(id_)
        assert e.chosen == (id_ in place) and e.place == place.get(id_) and e.uses == seen.uses[position]
        assert (e.trained is True) == (id_ in step_of) and (e.step == step_of[id_] if e.trained else True)
        assert json.loads(json.dumps(e.to_json(), allow_nan=False))["id"] == id_ and as_text(e) and e.why
        found.append(e)
    return found


def scores_by_a_loop(run, round_, e):
    """S of one sample, from the record alone."""
    record = json.loads((run / "decisions.jsonl").read_text().splitlines()[round_])
    total = 0.0
    for name, theta in record["theta"].items():
        total += theta * next(row["weight"] for row in record["labels"][name] if row["label"] == e.labels[name])
    return total


@pytest.mark.parametrize("name", CASES)
def test_every_sample_of_a_round_is_explained_as_it_was_decided(name, directory, tmp_path):
    overrides, round_ = CASES[name]
    small = [o for o in SHORT if o.split("=")[0] not in {key.split("=")[0] for key in overrides}]
    probes = ["selection.probes=60"] if not any(o.startswith(("selection=", "selection.probes")) for o in overrides) else []
    seen = light_run(tmp_path / "run", directory, *small, *probes, *overrides, rounds=round_ + 2 if round_ else 1)[round_]
    found = explained(tmp_path / "run", round_, seen)
    assert len(found) == len(seen.uses) and 0 < sum(e.chosen for e in found)
    assert {e.chosen for e in found} == ({True} if name == "everything" else {True, False})
    check = globals().get(f"look_at_{name.replace(' ', '_').replace('-', '_')}")
    if check:
        check(tmp_path / "run", round_, found)


class SharesByCell(RandomStrategy):
    """Any other strategy: shares for each label, none for the last one."""

    def recipe(self, scored, agents):
        return Recipe(HashOrder(), ("domain",), np.array([0.75, 0.25, 0.0]))


def test_a_strategy_of_ones_own_is_explained_through_its_recipe(directory, tmp_path, monkeypatch):
    for where in ("mads.explain.replay", "explain_support"):
        monkeypatch.setattr(f"{where}.build_strategy", lambda config: SharesByCell())
    seen = light_run(tmp_path / "run", directory, *SHORT, "selection=random", rounds=3)
    found = explained(tmp_path / "run", 2, seen[2])
    none = [e for e in found if e.labels["domain"] == "books"]
    assert none and all(e.why == ["Its label domain=books has no share of the budget."] for e in none)
    assert {e.standing.group.share for e in found} == {0.75, 0.25, 0.0} and any(e.chosen for e in found)


def look_at_mads(run, round_, found):
    """S is a loop's, the key is A S / temperature + noise for A agents, and the ranks are those of a sort by (uses, key)."""
    best, keys = max(scores_by_a_loop(run, round_, e) for e in found), []
    temperature = OmegaConf.load(run / "config.yaml").selection.temperature / len(found[0].agents)
    for e in found:
        total = scores_by_a_loop(run, round_, e)
        assert e.standing.total == pytest.approx(total, abs=1e-14) and sum(w.given for w in e.agents) == pytest.approx(total)
        key = (total - best) / temperature + e.standing.key.noise
        assert e.standing.key.value == pytest.approx(key, rel=1e-10, abs=1e-9)
        keys.append((e.uses, -key))
    order = sorted(range(len(found)), key=keys.__getitem__)
    assert [found[i].standing.ahead for i in order] == list(range(len(found)))
    count = sum(e.chosen for e in found)
    assert [found[i].chosen for i in order] == [True] * count + [False] * (len(found) - count)
    assert {e.standing.last.id for e in found} == {found[order[count - 1]].id}
    assert any("fewer uses come first" in " ".join(e.why) for e in found) and any(e.uses for e in found)


def look_at_mads_by_shares(run, round_, found):
    """Every cell's share is that of the equation, by a loop over samples, and the words name both shares."""
    temperature, tilted, natural = 0.5 / len(found[0].agents), {}, {}
    cell_of = lambda e: tuple(e.labels[w.agent] for w in e.agents)  # noqa: E731
    for e in found:
        assert sum(w.given for w in e.agents) == pytest.approx(scores_by_a_loop(run, round_, e))
        natural[cell_of(e)] = natural.get(cell_of(e), 0) + e.tokens
        tilted[cell_of(e)] = tilted.get(cell_of(e), 0) + e.tokens * np.exp(scores_by_a_loop(run, round_, e) / temperature)
    for e in found:
        share = natural[cell_of(e)] / sum(natural.values())
        assert e.standing.group.natural == pytest.approx(share)
        expected = 0.8 * tilted[cell_of(e)] / sum(tilted.values()) + 0.2 * share
        assert e.standing.group.share == pytest.approx(expected, rel=1e-9)
        assert any(f"natural share {share:.4g}" in line and f"into {expected:.4g}" in line for line in e.why)
    assert len({e.standing.group.share for e in found}) > 2


def look_at_paper(run, round_, found):
    totals = np.array([scores_by_a_loop(run, round_, e) for e in found])
    mapped = (totals - totals.min()) / (totals.max() - totals.min())
    keys = mapped / (1 + 0.1 * np.array([e.uses for e in found]))
    np.testing.assert_allclose([e.standing.key.value for e in found], keys, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose([e.standing.scaled for e in found], mapped, rtol=1e-10, atol=1e-12)
    chosen = np.array([e.chosen for e in found])
    assert keys[chosen].min() >= keys[~chosen].max() * (1 - 1e-10) and any(e.uses for e in found)
    assert any("the hash of the ids decided" in " ".join(e.why) for e in found)


def look_at_mads_prior(run, round_, found):
    assert all("believe before any, their priors" in e.why[0] and "turn the natural share" in e.why[1] for e in found)


def look_at_mads_warm_up(run, round_, found):
    assert all("the agents had no part" in e.why[0] for e in found)


def look_at_paper_random(run, round_, found):
    assert all("no rewards" in e.why[0] and e.standing.total is None for e in found)


def look_at_stratified(run, round_, found):
    for label in ("news", "code", "books"):
        own = [e for e in found if e.labels["domain"] == label]
        ordered = sorted(own, key=lambda e: (e.uses, e.standing.key.value))
        taken = [e.chosen for e in ordered]
        assert taken == sorted(taken, reverse=True) and {e.standing.group.share for e in own} == {1 / 3}
        before = np.cumsum([0] + [e.tokens for e in ordered])
        assert [e.standing.group.tokens_ahead for e in ordered] == before[:-1].tolist()
    assert all("quota was met" in e.why[-1] for e in found if not e.chosen)


def look_at_bounds(run, round_, found):
    said = {
        label: " ".join(s for e in found if e.labels["domain"] == label for s in e.why) for label in ("news", "code", "books")
    }
    assert "the minimum took it" in said["news"] and "at its bound" in said["code"] and "bound" not in said["books"]
    chosen = sum(e.tokens for e in found if e.chosen)
    code = sum(e.tokens for e in found if e.chosen and e.labels["domain"] == "code")
    assert code < 0.1 * chosen + 32


def look_at_minima(run, round_, found):
    assert any("took the whole budget" in e.why[-1] for e in found)


def look_at_parts(run, round_, found):
    taken = {e.labels["domain"] for e in found if any("the minimum took it" in s for s in e.why)}
    assert taken == {e.labels["domain"] for e in found}  # nine tenths of the budget go to minima, so each label has some


def look_at_bounds_by_top_k(run, round_, found):
    assert any("selection.max_uses=1" in e.why[-1] and e.uses == 1 and not e.chosen for e in found)


def look_at_shards(run, round_, found):
    assert all("Whole shards" in e.why[0] for e in found)
    for shard in {e.shard for e in found}:
        assert len({e.chosen for e in found if e.shard == shard}) == 1
        total = np.mean([scores_by_a_loop(run, round_, e) for e in found if e.shard == shard])
        assert next(e for e in found if e.shard == shard).standing.total == pytest.approx(total, abs=1e-8)


def look_at_everything(run, round_, found):
    assert all("Everything was chosen" in e.why[0] for e in found)
    assert any("running short" in note for note in found[0].notes)


# ---------------------------------------------------------------- checks that mutants turn red


def fresh_run(folder, *overrides, **how):
    make_pool(folder / "data", documents=20, shard_tokens=450)
    return folder / "run", light_run(folder / "run", folder / "data", *SHORT, *overrides, **how)


def check_grown_pool():
    """Rounds before and after the growth are decided on the shards that the run knew."""
    with tempfile.TemporaryDirectory() as folder:
        run, seen = fresh_run(Path(folder), *PAPER, shards=(1, 1))
        for round_ in (1, 2, 3):
            found = explained(run, round_, seen[round_])
            assert {e.shard for e in found} == ({0} if round_ < 2 else set(range(max(e.shard for e in found) + 1)))
        with pytest.raises(DataError, match="the pool had the shards 0 to 0"):
            Explainer(replay(run, 1)).explain(1 << 40)


def check_leftovers_go_back():
    """Use counts are those of the ledger: what no step took is not used, and the verdict says so."""
    with tempfile.TemporaryDirectory() as folder:
        run, seen = fresh_run(Path(folder), "selection=random", "selection.margin=0.6")
        back = [e for e in explained(run, 1, seen[1]) if e.chosen and e.trained is False]
        assert back and all("went back to the pool" in e.why[-1] for e in back)
        assert 0 < seen[3].uses.sum() < sum(len(s.ids) for s in seen[:3])
        assert np.array_equal(replay(run, 3).uses, seen[3].uses)


def check_every_order():
    """A round of each kind of order, every sample, with few joint cells, so that many scores are equal."""
    labels = {"domain": ("news", "code", "books"), "quality": ("low", "high"), "topic": ("a", "b"), "likeness": ("c", "d")}
    with tempfile.TemporaryDirectory() as folder:
        make_pool(Path(folder) / "data", documents=20, labels=labels, shard_tokens=450)
        for i, overrides in enumerate([PAPER, ["selection=stratified", "selection.attribute=domain"], CASES["bounds"][0]]):
            probes = ["selection.probes=60"] if overrides[0].startswith("selection.bounds") else []
            run = Path(folder) / f"run{i}"
            seen = light_run(run, Path(folder) / "data", *SHORT, *probes, *overrides, rounds=3)
            explained(run, 2, seen[2])


@pytest.mark.parametrize("check", [check_grown_pool, check_leftovers_go_back])
def test_use_counts_and_shards_are_those_of_the_round(check):
    check()


# ---------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def whole(directory, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, light_run(run, directory, *SHORT, *PAPER, rounds=3)


def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def edit_line(run, round_, change):
    lines = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    change(lines[round_])
    (run / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def turn_theta(line):
    line["theta"] = {name: -theta for name, theta in line["theta"].items()}


def change_weights(line):
    line["states"]["domain"]["weights"].reverse()


@pytest.mark.parametrize(
    "change, words",
    [
        (turn_theta, "is not what the run folder holds"),
        (change_weights, "is not what the run folder holds"),
        (lambda line: line.update(hash=line["hash"] ^ 1), "are not those that decisions.jsonl vouches for"),
        (lambda line: line.update(states={}), "has no state of agent 'quality'"),
        (lambda line: line["states"]["domain"].update(labels=["other"]), "does not fit"),
        (lambda line: line.update(consumed_tokens=line["consumed_tokens"] + 1), "it is not the run's data"),
        (lambda line: line.update(step=line["step"] + 9), "cannot have been trained on for 11 steps"),
    ],
)
def test_an_edited_record_is_found_out(whole, tmp_path, change, words):
    run = copied(whole, tmp_path)
    edit_line(run, 2, change)
    with pytest.raises(DataError, match=words):
        replay(run, 2)


def test_other_ids_other_data_and_missing_files_are_told(whole, directory, tmp_path):
    run = copied(whole, tmp_path)
    ids = read_decision(run, 2)

    def put(changed):
        write_decision(run, 2, changed)
        edit_line(run, 2, lambda line: line.update(hash=DecisionHeader.of(2, changed).hash))

    put(ids[::-1])
    with pytest.raises(DataError, match="the order differs"):
        replay(run, 2)
    pool = replay(run, 1).pool
    left_out = np.setdiff1d(np.asarray(pool.ids), ids)
    put(np.append(ids[1:], left_out[0]))
    with pytest.raises(DataError, match="2 samples are in one of them only"):
        replay(run, 2)
    with pytest.raises(DataError, match="has no round 3: decisions.jsonl holds the rounds 0 to 2"):
        replay(run, 3)
    make_pool(tmp_path / "other", documents=30, shard_tokens=450, seed=1)
    with pytest.raises(DataError, match="--data DIR"):
        replay(run, 1, tmp_path / "other")
    shutil.copytree(directory, tmp_path / "moved")
    assert np.array_equal(replay(run, 1, tmp_path / "moved").uses, whole[1][1].uses)
    decision_path(run, 0).unlink()
    with pytest.raises(DataError, match=r"round-00000.npy is missing"):
        replay(run, 1)
    (run / "config.yaml").unlink()
    with pytest.raises(DataError, match="holds no config.yaml"):
        replay(run, 1)
    with pytest.raises(DataError, match="is not a folder"):
        replay(tmp_path / "nowhere", 0)


def test_unknown_ids_are_told(whole):
    explainer = Explainer(replay(whole[0], 1))
    with pytest.raises(DataError, match="shard 0 has the rows 0 to"):
        explainer.explain((1 << 40) - 1)
    with pytest.raises(DataError, match="there is no sample .*900:0"):
        explainer.explain(900 << 40)


def test_sample_ids_are_read_in_both_forms():
    assert sample_id("17") == 17 and sample_id("3:17") == (3 << 40) + 17 and sample_id(str((3 << 40) + 17)) == (3 << 40) + 17
    for text in ("", "a", "-1", "3:", ":3", "1:2:3", "3:x", f"0:{1 << 40}", str(1 << 63), f"{1 << 23}:0"):
        with pytest.raises(DataError, match="--sample"):
            sample_id(text)
