"""selection=paper written once more, from the equations of arXiv 2410.08102 (Eq. 4-8) and the normalisation in docs/selection.md.
Plain loops over samples and labels; nothing of mads is imported here.
"""

import math

import numpy as np


class PaperTranscription:
    """The loop of the paper.

    attributes: agent -> (labels of all samples, int [n]; number of labels); tokens: int [n]
    eta, eta_theta: rates of Eq. 5 and Eq. 8; use_decay: of the scripts
    """

    def __init__(self, attributes, tokens, eta, eta_theta, use_decay):
        self.labels = {name: np.asarray(codes) for name, (codes, _) in attributes.items()}
        self.tokens, self.eta, self.eta_theta, self.use_decay = np.asarray(tokens), eta, eta_theta, use_decay
        total = sum(int(t) for t in self.tokens)
        self.w = {}  # start: the labels' shares of the pool's tokens
        for name, (codes, count) in attributes.items():
            held = [0] * count
            for label, tokens_of_sample in zip(codes, self.tokens):
                held[int(label)] += int(tokens_of_sample)
            self.w[name] = [tokens_of_label / total for tokens_of_label in held]
        self.theta = {name: 1 / len(attributes) for name in attributes}

    def learn(self, samples, rewards, targets, importance, own):
        """One round. samples: positions of the probes; own: agent -> which of the probes it drew, bool. Returns R_A by agent."""
        weight = [i * t for i, t in zip(importance, targets)]
        rms = math.sqrt(math.fsum(a * r * r for a, r in zip(weight, rewards)) / math.fsum(weight))
        scaled = [r / rms if rms > 0 else 0.0 for r in rewards]
        agent_reward = {}
        for name, w in self.w.items():
            products = []
            for j in range(len(w)):
                d_j = [r for x, r, mine in zip(samples, scaled, own[name]) if mine and self.labels[name][x] == j]
                if not d_j:
                    continue  # a label without probes keeps its weight and is left out of Eq. 7
                r_j = math.fsum(d_j) / len(d_j)  # Eq. 4
                w[j] = (1 - self.eta) * w[j] + self.eta * r_j  # Eq. 5
                products.append(w[j] * r_j)
            agent_reward[name] = math.fsum(products) / len(products)  # Eq. 7
        mean = math.fsum(agent_reward.values()) / len(agent_reward)
        moved = {name: theta + self.eta_theta * (agent_reward[name] - mean) for name, theta in self.theta.items()}  # Eq. 8
        self.theta = on_simplex(moved)
        return agent_reward

    def keys(self, uses):
        """What top-k sorts by, greatest first, float64 [n]: S of Eq. 6 mapped to [0, 1], divided by 1 + use_decay * uses."""
        s = []
        for x in range(len(self.tokens)):
            s.append(sum(theta * self.w[name][self.labels[name][x]] for name, theta in self.theta.items()))
        low, high = min(s), max(s)
        return np.array(
            [((v - low) / (high - low) if high > low else 1.0) / (1 + self.use_decay * int(u)) for v, u in zip(s, uses)]
        )


def on_simplex(theta):
    """The nearest probability vector: what is negative becomes 0, the others are moved alike (Michelot 1986)."""
    theta, kept = dict(theta), set(theta)
    while True:
        shift = (math.fsum(theta[name] for name in kept) - 1) / len(kept)
        moved = {name: theta[name] - shift for name in kept}
        if min(moved.values()) >= 0:
            return {name: moved.get(name, 0.0) for name in theta}
        kept = {name for name in kept if moved[name] > 0}


def what_is_wrong(keys, tokens, budget, chosen, same=2.0**-34):
    """Why `chosen` (bool [n]) is not a choice of the first samples by key that cover the budget; None if it is one. Among the
    samples whose key is equal to the last one's (to 2**-34, for decisions compare 36 bits) any may be taken."""
    if not chosen.any() or chosen.all():
        return "nothing was chosen" if not chosen.any() else None if tokens.sum() <= budget else "everything was chosen"
    last = keys[chosen].min()
    above, tied = keys > last + same * abs(last), np.abs(keys - last) <= same * abs(last)
    if (above & ~chosen).any():
        return f"{int((above & ~chosen).sum())} better samples than the last one were left out"
    if tokens[above].sum() >= budget:
        return "the budget was covered without the last ones"
    covered, in_tie = int(tokens[chosen].sum()), tokens[chosen & tied]
    if covered < budget:
        return f"{covered} tokens do not cover {budget}"
    if covered - in_tie.max() >= budget:
        return f"{covered} tokens cover {budget} by more than a sample"
    return None
