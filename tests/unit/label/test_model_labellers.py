"""Labellers with a model of Hugging Face, on tiny random models made here, against transformers used by hand."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from label_support import natural
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mads.data.documents import Document
from mads.data.schema import DataError
from mads.label.base import load_labeller, save_labeller
from mads.label.embedding import EmbeddingTopicLabeller
from mads.label.huggingface import HuggingFaceClassifier, ModelPerplexity

WORDS = sorted({w for d in natural(200) for w in d.text.replace(".", " ").replace(",", " ").split()})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SMALL = dict(
    vocab_size=len(WORDS) + len(SPECIAL) + 2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    pad_token_id=0,
)


def save(folder, model, special=True):
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, ".", ",", *WORDS])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, safe_serialization=True)
    return str(folder)


def classifier(folder, **config):
    torch.manual_seed(3)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, **config))
    with torch.no_grad():
        model.classifier.weight.mul_(50)  # random weights give nearly equal outputs
        model.classifier.bias.add_(2.0)
    return save(folder, model)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("regression"), num_labels=1)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    torch.manual_seed(4)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, initializer_range=0.5)
    return save(tmp_path_factory.mktemp("causal"), transformers.LlamaForCausalLM(config), special=False)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    torch.manual_seed(5)
    return save(tmp_path_factory.mktemp("sentences"), transformers.BertModel(transformers.BertConfig(**SMALL)))


def logits_by_hand(path, text, length=64):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        return model(**tokenizer(text, truncation=True, max_length=length, return_tensors="pt")).logits[0].numpy()


def test_a_regression_head_gives_a_clipped_score_and_its_bin(regression):
    documents = natural(30, seed=8)
    by_hand = np.array([logits_by_hand(regression, d.text)[0] for d in documents], dtype=np.float64)
    low, middle, high = np.quantile(by_hand, [0.2, 0.47, 0.8])  # between documents: some outside, some in either bin
    codes, scores = HuggingFaceClassifier(regression, edges=[low, middle, high]).label(documents)
    np.testing.assert_allclose(scores, np.clip(by_hand, low, high), atol=1e-5)
    assert codes.tolist() == [int(s >= middle) for s in by_hand] and len(set(codes.tolist())) == 2


def test_several_classes_give_the_most_likely_one(tmp_path):
    path = classifier(tmp_path, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    labeller = HuggingFaceClassifier(path)
    documents = natural(20, seed=8)
    codes, values = labeller.label(documents)
    assert values is None and labeller.schema().labels == ("bad", "fair", "good")
    assert codes.tolist() == [int(logits_by_hand(path, d.text).argmax()) for d in documents]


def check_that_labels_do_not_depend_on_the_batch(make):
    labeller, documents = make(), natural(24, seed=8)
    labeller.fit(natural(40))
    together = labeller.label(documents)
    alone = [labeller.label([d]) for d in reversed(documents)][::-1]
    assert together[0].tobytes() == np.concatenate([a[0] for a in alone]).tobytes()
    if together[1] is not None:
        assert together[1].tobytes() == np.concatenate([a[1] for a in alone]).tobytes()


@pytest.mark.parametrize("kind", ["regression", "causal", "sentences"])
def test_labels_do_not_depend_on_the_batch(kind, request):
    path = request.getfixturevalue(kind)
    make = {
        "regression": lambda: HuggingFaceClassifier(path),
        "causal": lambda: ModelPerplexity(path),
        "sentences": lambda: EmbeddingTopicLabeller(path, topics=4),
    }[kind]
    check_that_labels_do_not_depend_on_the_batch(make)


@pytest.mark.parametrize("kind", ["regression", "causal"])
def test_padding_changes_results_by_rounding_only(kind, request):
    path = request.getfixturevalue(kind)
    build = HuggingFaceClassifier if kind == "regression" else ModelPerplexity
    one, eight = build(path), build(path, batch_size=8)
    documents = natural(30, seed=8) + [Document("The moon.", "x", "made", 1)]
    for labeller in (one, eight):
        labeller.fit(natural(40))
    np.testing.assert_allclose(one.label(documents)[1], eight.label(documents)[1], atol=2e-5)


def test_bits_per_byte_are_those_of_the_model_by_hand(causal):
    labeller = ModelPerplexity(causal, max_length=32)
    labeller.fit(natural(40))
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal)
    model = transformers.AutoModelForCausalLM.from_pretrained(causal).eval()
    documents = natural(10, seed=8) + [Document("moon", "x", "made", 1)]
    for document, value in zip(documents, labeller.label(documents)[1]):
        encoded = tokenizer(document.text, truncation=True, max_length=32, return_offsets_mapping=True)
        ids, spans = torch.tensor([encoded["input_ids"]]), encoded["offset_mapping"]
        if ids.shape[1] == 1:
            assert value == 0
            continue
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids).loss.item()  # over the tokens after the first
        size = len(document.text[spans[0][1] : spans[-1][1]].encode())
        assert value == pytest.approx(mean * (ids.shape[1] - 1) / math.log(2) / size, rel=1e-5)


def test_embeddings_are_means_of_tokens(sentences):
    labeller = EmbeddingTopicLabeller(sentences, topics=3, max_length=24)
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentences)
    model = transformers.AutoModel.from_pretrained(sentences).eval()
    documents = natural(6, seed=2)
    for document, row in zip(documents, labeller.embed(documents)):
        with torch.no_grad():
            states = model(**tokenizer(document.text, truncation=True, max_length=24, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(dim=0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_the_pooling_that_the_folder_asks_for(sentences, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(sentences, folder)
    (folder / "1_Pooling").mkdir()
    kinds = [("", "models.Transformer"), ("1_Pooling", "models.Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    first = EmbeddingTopicLabeller(str(folder), topics=3).embed(natural(5))
    assert np.abs(first - EmbeddingTopicLabeller(sentences, topics=3).embed(natural(5))).max() > 0.01
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(DataError, match="pooling_mode_max_tokens"):
        EmbeddingTopicLabeller(str(folder), topics=3)
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2", "type": "models.Dense"}]))
    with pytest.raises(DataError, match="Dense"):
        EmbeddingTopicLabeller(str(folder), topics=3)


@pytest.mark.parametrize("kind", ["regression", "causal", "sentences"])
def test_a_state_comes_back_and_belongs_to_its_model(kind, request, tmp_path):
    path = request.getfixturevalue(kind)
    build = {
        "regression": lambda p: HuggingFaceClassifier(p),
        "causal": lambda p: ModelPerplexity(p),
        "sentences": lambda p: EmbeddingTopicLabeller(p, topics=4),
    }[kind]
    fitted, fresh, documents = build(path), build(path), natural(20, seed=8)
    fitted.fit(natural(40))
    save_labeller(tmp_path / "a.npz", fitted)
    load_labeller(tmp_path / "a.npz", fresh)
    assert fitted.label(documents)[0].tobytes() == fresh.label(documents)[0].tobytes()
    assert fitted.schema() == fresh.schema()
    assert path not in json.dumps(fitted.schema().provenance)  # no path of a machine
    import shutil

    shutil.copytree(path, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "other" / "config.json").read_text() + "\n")
    with pytest.raises(DataError, match="model: "):
        load_labeller(tmp_path / "a.npz", build(str(tmp_path / "other")))


def test_what_is_no_model_is_refused_by_name(regression, tmp_path):
    with pytest.raises(DataError, match="no config.json and no .safetensors"):
        HuggingFaceClassifier(str(tmp_path))
    import shutil

    shutil.copytree(regression, tmp_path / "pickled")
    weights = next((tmp_path / "pickled").glob("*.safetensors"))
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(DataError, match="safetensors"):
        HuggingFaceClassifier(str(tmp_path / "pickled"))
    with pytest.raises(DataError, match="batch_size=0"):
        HuggingFaceClassifier(regression, batch_size=0)
