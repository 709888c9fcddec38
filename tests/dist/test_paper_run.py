"""A real run of selection=paper, its model's own rewards, against an independent transcription of Eq. 4-8."""

import numpy as np
from harness import run_ranks
from paper_support import assert_transcribed, listen, pool_of
from run_support import prepare_small

RUN = [
    "selection=paper",
    "selection.probes_per_agent=16",
    "selection.interval=2",
    "reward.reference_examples=8",
    "reward.rows_per_batch=8",
    "train.steps=10",
    "train.eval_interval=10",
    "train.eval_samples=2",
    "train.global_batch_size=32",
    "train.micro_batch_size=16",
    "train.invariant_interval=100",
    "optim.lr=0.003",
]


def train(prepared, run_dir):
    from run_support import run_config, trainer

    config = run_config(prepared, run_dir, *RUN)
    made = trainer(config)
    rounds = listen(made.parts.console)
    made.run()
    rates = config.selection.agent_rate, config.selection.theta_rate, config.selection.use_decay
    return pool_of(made.parts.console), rounds, rates


def test_a_real_run_equals_the_transcription(tmp_path):
    prepared = str(prepare_small(tmp_path))
    [(pool, rounds, rates)] = run_ranks(1, train, prepared, str(tmp_path / "run"), timeout=300)
    assert len(rounds) == 5 and rates == (0.1, 1.0, 0.1)
    assert_transcribed(pool, rounds, *rates)
    rewards = np.concatenate([seen["measured"]["rewards"] for seen in rounds[1:]])
    assert len(rewards) > 100 and len(np.unique(rewards)) > 0.9 * len(rewards)
    chosen_again = [(seen["uses"][np.isin(pool["ids"], seen["ids"])] > 0).sum() for seen in rounds]
    assert sum(chosen_again) > 0, "no sample was chosen again, so the use decay was not seen at work"
