"""The selectors as plain functions of whole arrays, by the full sort."""

import numpy as np

from mads.console.decide import Plan, Strata, combine, decide
from mads.console.order import Draw, GumbelOrder, HashOrder, RandomOrder, TopKOrder


def select_random(candidates, seed, round_, budget, **rest):
    return decide(Plan(RandomOrder(), Draw(seed, round_), budget, **rest), candidates)


def select_top_k(candidates, scores, theta, use_decay, seed, round_, budget, **rest):
    return decide(Plan(TopKOrder(use_decay), Draw(seed, round_), budget, **rest), candidates, combine(scores, theta))


def select_gumbel(candidates, scores, theta, temperature, seed, round_, budget, **rest):
    return decide(Plan(GumbelOrder(temperature), Draw(seed, round_), budget, **rest), candidates, combine(scores, theta))


def select_stratified(candidates, codes, labels, shares, seed, round_, budget, **rest):
    strata = Strata(len(labels), lambda cell: labels[cell], shares if isinstance(shares, str) else np.asarray(shares, float))
    return decide(Plan(HashOrder(), Draw(seed, round_), budget, strata, **rest), candidates, cells=np.asarray(codes))
