"""Made results of a comparison, in the form that mads.compare.collect writes, for tests of what is drawn from them."""

import numpy as np

FRACTIONS = (0.4, 0.5, 0.6, 0.75, 1.0)


def made_result(strategy, seed, gain=0.0, overhead=0.0, fractions=FRACTIONS, steps=1000, evaluated=True):
    """A cell whose losses fall with the logarithm of the steps; `gain` is by how much all of them are lower."""
    rng = np.random.default_rng([seed, sum(map(ord, strategy))])
    noise, shared = rng.normal(0, 0.004), np.random.default_rng(seed).normal(0, 0.03)

    def loss(step, level):
        return round(float(level - 0.35 * np.log(step + 20) - gain * min(1, step / 300) + noise + shared), 6)

    def losses(step):
        references = {"lambada": loss(step, 5.0), "squad": loss(step, 5.4)}
        heldout = {"books": loss(step, 5.1), "code": loss(step, 4.7) + gain * 1.2}
        return {
            "references": references,
            "references_mean": float(np.mean(list(references.values()))),
            "heldout": heldout,
            "heldout_mean": float(np.mean(list(heldout.values()))),
        }

    points = []
    for fraction in fractions:
        end = round(fraction * steps)
        tasks = {
            t: {"bits_per_byte": loss(end, level) / 2, "standard_error": 0.01} for t, level in (("arc", 4.9), ("boolq", 4.5))
        }
        points.append(
            {
                "fraction": fraction,
                "steps": end,
                "tokens": end * 4000,
                "seconds": end * 0.5,
                "cpu_seconds": end * 0.45,
                "selection_seconds": end * 0.5 * overhead,
                "training_flops": end * 1e10,
                "selection_flops": end * 1e10 * overhead,
                "selection_flops_counted": True,
                **losses(end),
                "evaluation": {
                    "step": end,
                    "tasks": tasks,
                    "apart": ["boolq"],
                    "mean_bits_per_byte": tasks["arc"]["bits_per_byte"],
                }
                if evaluated
                else None,
            }
        )
    at = list(range(0, steps + 1, 50))
    curve = [losses(step) for step in at]
    share = 0.06 if not gain else 0.01
    label = lambda pool, chosen: {"pool": pool, "rounds": [chosen] * 4, "all": chosen, "epochs": round(chosen / pool / 10, 3)}
    return {
        "format": 1,
        "strategy": strategy,
        "seed": seed,
        "digest": "0" * 64,
        "settings": {"selection.name": strategy, "train.seed": seed, "data": "f" * 64},
        "git": {"commit": "0123456789abcdef", "modified": False},
        "packages": {"mads": "0.1.0"},
        "python": "3.11",
        "system": "Linux",
        "device": "cpu",
        "steps": steps,
        "tokens_per_step": 4096,
        "tokens": steps * 4000,
        "stages": {"trunk": {"seconds": 400.0, "cpu_seconds": 390.0, "starts": 1}},
        "curve": {
            "tokens": [step * 4000 for step in at],
            **{g: {n: [c[g][n] for c in curve] for n in curve[0][g]} for g in ("references", "heldout")},
            **{f"{g}_mean": [c[f"{g}_mean"] for c in curve] for g in ("references", "heldout")},
        },
        "points": points,
        "mix": {"domain": {"books": label(0.6, 0.6 + gain), "code": label(0.4, 0.4 - gain)}},
        "destroyed": {"source": {"pool": 0.06, "rounds": [0.06, share, share, share], "all": share}},
        "rounds": [
            {"round": i, "step": i * 250, "theta": {}, "weights": {}, "chosen": 100, "reused": i, "seconds": {}} for i in range(4)
        ],
    }


def made_results(seeds=(0, 1, 2), **options):
    """random, stratified and mads, of which mads gains most, at 5% more FLOPs."""
    gains = {"random": 0.0, "stratified": 0.03, "mads": 0.12}
    return [made_result(s, seed, gains[s], 0.05 if s == "mads" else 0.0, **options) for seed in seeds for s in gains]
