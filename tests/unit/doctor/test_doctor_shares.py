"""Parameters of each GPU, counted on the meta device, against the whole model."""

import pytest

from mads.config.compose import compose
from mads.doctor.shares import padded_vocabulary, shares
from mads.model.decoder import Decoder
from mads.model.shape import parameter_count

TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"


@pytest.mark.parametrize("model", ["nano", "tiny", "paper_373m", "paper_1b3", "paper_3b6", "paper_8b"])
def test_one_gpu_holds_the_whole_model(model):
    config = compose([f"model={model}"])
    (only,) = shares(config)
    module = Decoder(config.model, device="meta")
    assert only.parameters == sum(p.numel() for p in module.parameters()) == parameter_count(config.model)
    assert only.largest == max(p.numel() for p in module.parameters())
    assert (only.first, only.last, only.layers) == (True, True, config.model.num_layers)


@pytest.mark.parametrize("tp, pp, tie", [(1, 1, True), (2, 1, False), (2, 1, True), (1, 2, False), (1, 4, True), (2, 2, True)])
def test_shares_add_up_to_the_model_with_its_padding(tp, pp, tie):
    config = compose(["model.vocab_size=511", f"model.tie_embeddings={str(tie).lower()}", f"{TP}={tp}", f"{PP}={pp}"])
    m, found = config.model, shares(config)
    assert padded_vocabulary(config) == (511 if tp == 1 else 512)
    assert [s.stage for s in found] == list(range(pp)) and sum(s.layers for s in found) == m.num_layers
    norms = (2 * m.num_layers + 1) * m.hidden_size  # whole on every tensor-parallel rank
    copies = m.hidden_size * padded_vocabulary(config) if tie and pp > 1 else 0  # the last stage's own embedding
    padding = (1 if tie else 2) * (padded_vocabulary(config) - 511) * m.hidden_size
    assert tp * sum(s.parameters for s in found) == parameter_count(m) + padding + copies + (tp - 1) * norms
    assert [s.first for s in found] == [True] + [False] * (pp - 1) and [s.last for s in found] == [False] * (pp - 1) + [True]
