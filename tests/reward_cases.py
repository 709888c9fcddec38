"""Reference tasks of random tokens, a rewarder on an engine, and what its rewards must be, from the definition."""

import model_support as support
import numpy as np
import torch
from model_cases import plain_losses

from mads.config.schema import FiniteDifferenceRewardConfig, GhostRewardConfig
from mads.data.batch import make_batch
from mads.model.decoder import Decoder
from mads.reward.influence import Rewarder
from mads.reward.reference import ReferenceTask
from mads.train.reward_model import EngineRewardModel


def references(seed=11):
    windows = lambda s, n: [[w % 131] for w in support.random_samples(n, s)]  # noqa: E731
    return [
        ReferenceTask(name, {part: windows(seed + 10 * i + j, 6) for j, part in enumerate(("direction", "audit", "report"))})
        for i, name in enumerate(("first", "second"))
    ]


def rewarder(built, mode, rows=3, **settings):
    common = {"mode": mode, "reference_examples": 5, "rows_per_batch": rows, **settings}
    cfg = (FiniteDifferenceRewardConfig if mode == "finite_difference" else GhostRewardConfig)(**common)
    sizes = {n: shape.numel() for n, shape in built.engine.logical_shapes.items()}
    model = EngineRewardModel(built.engine)
    optim = built.config.optim
    return Rewarder(model, references(), built.topology, sizes, optim.beta2, optim.eps, 32, 0, cfg)


def exact(built, weights, moments, samples, round_=0, plain=False):
    """(rewards, |v|) by plain autograd in float64 from the definition, one sample at a time.

    weights, moments: whole tensors by logical name
    plain: v is the references' gradient
    """
    module = Decoder(built.config.model).double()
    steps = built.engine.state.steps
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.copy_(weights[n].to(built.engine.dtype))
    names = [n for n, _ in module.named_parameters()]

    def gradient(sample):
        b = make_batch([[sample]], 32)
        return torch.autograd.grad(plain_losses(module, b).sum(), list(module.parameters()))

    total = [torch.zeros_like(p) for p in module.parameters()]
    tasks = references()
    for task in tasks:
        windows = task.windows("direction", 5, 0, round_)
        targets = sum(len(w) - 1 for w in windows)
        for w in windows:
            for t, g in zip(total, gradient(w)):
                t += g / (len(tasks) * targets)
    beta2, v = built.config.optim.beta2, {}
    for n, g in zip(names, total):
        hat = (beta2 * moments[n].double() + (1 - beta2) * g**2) / (1 - beta2 ** (steps + 1))
        v[n] = g if plain else g / (hat.sqrt() + built.config.optim.eps + 0.3 * hat.mean().sqrt())
    norm = torch.sqrt(sum((x**2).sum() for x in v.values()))
    rewards = [sum((v[n] / norm * g).sum() for n, g in zip(names, gradient(s))).item() / (len(s) - 1) for s in samples]
    return np.array(rewards), float(norm)
