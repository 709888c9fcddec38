"""Records what a console of selection=paper is given and what it makes of it, and holds it to tests/paper_transcription.py."""

import numpy as np
from paper_transcription import PaperTranscription, what_is_wrong

EXACT = dict(rtol=0, atol=1e-12)


def listen(console):
    """A list that gets a dict a round, plain values only, from two thin hooks on the console."""
    rounds, learn, decide = [], console._learn, console.decide

    def heard(measured):
        probes = measured.probes
        rounds[-1]["measured"] = {
            "samples": probes.positions.copy(),
            "rewards": np.array(measured.rewards, dtype=np.float64),
            "targets": np.array(measured.targets),
            "importance": probes.importance.copy(),
            "own": {name: drawn.copy() for name, drawn in probes.members.items()},
        }
        return learn(measured)

    def decided(rewards, uses, budget, *rest, **named):
        rounds.append({"uses": np.array(uses), "budget": budget})
        ids, record = decide(rewards, uses, budget, *rest, **named)
        weights = {name: [row.weight for row in record.labels[name]] for name in console.names}
        rounds[-1] |= {"ids": ids.copy(), "w": weights, "theta": dict(record.theta), "reward": dict(record.agent_rewards)}
        return ids, record

    console._learn, console.decide = heard, decided
    return rounds


def pool_of(console):
    """The pool as plain arrays."""
    pool = console.pool
    attributes = {a.name: (np.asarray(pool.codes(a.attribute)), len(pool.labels(a.attribute))) for a in console.agents}
    return {"ids": np.asarray(pool.ids), "tokens": np.asarray(pool.lengths), "attributes": attributes}


def assert_transcribed(pool, rounds, eta, eta_theta, use_decay):
    """Every round's weights, R_A and theta to 1e-12, and its ids; round 0 is a random subset, which no equation says."""
    paper = PaperTranscription(pool["attributes"], pool["tokens"], eta, eta_theta, use_decay)
    for number, seen in enumerate(rounds):
        assert ("measured" in seen) == (number > 0)
        rewards = paper.learn(**seen["measured"]) if number else {}
        assert set(seen["reward"]) == set(rewards) and set(seen["theta"]) == set(paper.theta)
        for name, w in paper.w.items():
            np.testing.assert_allclose(seen["w"][name], w, **EXACT, err_msg=f"w of {name} in round {number}")
            np.testing.assert_allclose(seen["theta"][name], paper.theta[name], **EXACT, err_msg=f"theta in round {number}")
            if number:
                np.testing.assert_allclose(seen["reward"][name], rewards[name], **EXACT, err_msg=f"R_A in round {number}")
        chosen = np.isin(pool["ids"], seen["ids"])
        assert len(np.unique(seen["ids"])) == len(seen["ids"]) == chosen.sum()
        if number:
            wrong = what_is_wrong(paper.keys(seen["uses"]), pool["tokens"], seen["budget"], chosen)
            assert wrong is None, f"round {number}: {wrong}"
