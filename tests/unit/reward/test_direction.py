"""The reward direction against a NumPy transcription of the method's section 6, and its diagnostics."""

import numpy as np
import pytest
import torch

from mads.reward.direction import group_of, make_direction, preconditioned

NAMES = {"embedding.weight": (6, 4), "layers.0.attention_norm.weight": (4,), "layers.0.mlp.down.weight": (4, 8)}
BETA2, EPS, DELTA = 0.95, 1e-8, 0.3


def vectors(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator) * scale for n, shape in NAMES.items()}


def transcription(g, v, steps, beta2, eps, delta):
    """P g with P = 1 / (sqrt(v_hat) + eps + delta rms), v_hat bias-corrected after one more step with g."""
    g, v = g.double().numpy(), v.double().numpy()
    v_hat = (beta2 * v + (1 - beta2) * g**2) / (1 - beta2 ** (steps + 1))
    return g / (np.sqrt(v_hat) + eps + delta * np.sqrt(v_hat.mean()))


def alone(values):
    """Totals where one rank owns everything."""
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("steps", [0, 1, 300])
@pytest.mark.parametrize("damping", [0.0, 0.3, 5.0])
def test_the_preconditioner_equals_its_formula(steps, damping):
    gradient, moment = vectors(1), {n: t.square() * (steps > 0) for n, t in vectors(2, 0.1).items()}
    kept = {n: (gradient[n].clone(), moment[n].clone()) for n in NAMES}
    sizes = {n: int(np.prod(s)) for n, s in NAMES.items()}
    result = preconditioned(gradient, moment.__getitem__, steps, sizes, BETA2, EPS, damping, alone)
    for n in NAMES:
        expected = transcription(*kept[n], steps, BETA2, EPS, damping)
        np.testing.assert_allclose(result[n].numpy(), expected, rtol=1e-5)
        assert result[n] is gradient[n] and torch.equal(moment[n], kept[n][1])  # in place; the optimizer's state is not touched


def test_pieces_of_two_owners_give_the_whole():
    """Under ZeRO 3 each rank holds a flat piece; the rms is that of the whole tensor."""
    gradient, moment = vectors(1), {n: t.square() for n, t in vectors(2).items()}
    sizes = {n: int(np.prod(s)) for n, s in NAMES.items()}
    whole = preconditioned({n: g.clone() for n, g in gradient.items()}, moment.__getitem__, 7, sizes, BETA2, EPS, DELTA, alone)
    cut = {n: size // 2 + 1 for n, size in sizes.items()}

    def piece(vector, rank):
        return {n: (t.flatten()[: cut[n]] if rank == 0 else t.flatten()[cut[n] :]).clone() for n, t in vector.items()}

    def part(rank, heard):
        own = piece(gradient, rank)
        return preconditioned(own, piece(moment, rank).__getitem__, 7, sizes, BETA2, EPS, DELTA, heard)

    sums = []
    for rank in range(2):  # first pass: what each rank would contribute to the totals
        part(rank, lambda x: sums.append(alone(x)) or sums[-1])
    pieces = [part(rank, lambda x: {n: sums[0][n] + sums[1][n] for n in x}) for rank in range(2)]
    for n in NAMES:
        torch.testing.assert_close(torch.cat([p[n] for p in pieces]), whole[n].flatten())


def test_weights_that_training_never_touched_do_not_dominate():
    """Rows with a second moment of 0 get at most 1 / (delta rms) and, undamped, far more than that."""
    gradient = {"embedding.weight": torch.full((100,), 1e-3)}
    moment = {"embedding.weight": torch.cat([torch.zeros(1), torch.ones(99)])}
    share = {}
    for damping in (0.0, 0.3):
        vector = preconditioned(
            {n: g.clone() for n, g in gradient.items()},
            moment.__getitem__,
            300,
            {"embedding.weight": 100},
            BETA2,
            EPS,
            damping,
            alone,
        )
        squares = vector["embedding.weight"].square()
        share[damping] = float(squares[0] / squares.sum())
    assert share[0.0] > 0.99 and share[0.3] < 0.5


def test_a_direction_has_unit_length_and_its_shares_say_where_it_sits():
    vector = vectors(3)
    total = sum(float(t.double().square().sum()) for t in vector.values())
    kept = {n: t.clone() for n, t in vector.items()}
    made = make_direction(vector, alone)
    assert made.norm == pytest.approx(np.sqrt(total))
    assert sum(float(t.square().sum()) for t in made.vector.values()) == pytest.approx(1.0, rel=1e-5)
    assert made.shares == {
        "embedding": pytest.approx(float(kept["embedding.weight"].square().sum()) / total, rel=1e-5),
        "norm": pytest.approx(float(kept["layers.0.attention_norm.weight"].square().sum()) / total, rel=1e-5),
        "mlp": pytest.approx(float(kept["layers.0.mlp.down.weight"].square().sum()) / total, rel=1e-5),
    }
    largest = max(float(t.abs().max()) for t in kept.values())
    assert made.top_share == pytest.approx(largest**2 / total, rel=1e-5)  # 1% of 60 coordinates is one
    assert all(made.vector[n] is vector[n] for n in vector)  # in place


def test_the_share_of_the_largest_coordinates_of_a_large_model_is_sampled():
    vector = {"a": torch.randn(300_000, generator=torch.Generator().manual_seed(0)), "b": torch.randn(100_000) * 3}
    squares = torch.cat(list(vector.values())).double().square()
    exact = squares.topk(len(squares) // 100).values.sum() / squares.sum()
    assert make_direction(vector, alone).top_share == pytest.approx(float(exact), rel=0.1)


def test_the_direction_points_along_the_gradient_not_against_it():
    gradient, kept = vectors(1), vectors(1)
    sizes = {n: int(np.prod(s)) for n, s in NAMES.items()}
    zero = {n: torch.zeros_like(t) for n, t in gradient.items()}
    made = make_direction(preconditioned(gradient, zero.__getitem__, 0, sizes, BETA2, EPS, DELTA, alone), alone)
    assert all(float((made.vector[n] * kept[n]).sum()) > 0 for n in NAMES)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_direction_that_is_zero_or_not_finite_is_an_error(bad):
    with pytest.raises(ValueError, match="squared norm (0.0|nan|inf).*zero or not finite"):
        make_direction({"a": torch.full((3,), bad)}, alone)


def test_every_parameter_of_the_decoder_belongs_to_a_named_group():
    from model_cases import small_config

    from mads.layout import named_logical_parameters
    from mads.model.decoder import Decoder

    module = Decoder(small_config(tie_embeddings=False))
    groups = {name: group_of(name) for name, _ in named_logical_parameters(module)}
    assert set(groups.values()) == {"embedding", "attention", "mlp", "norm", "head"}
    assert groups["layers.0.attention_norm.weight"] == "norm" and groups["layers.0.attention.qkv.weight"] == "attention"
    assert group_of("something.else") == "other"
