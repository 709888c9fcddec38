"""A fitted labeller in a file: the same labels bit for bit, equal bytes, and no state where it does not belong."""

from dataclasses import replace

import numpy as np
import pytest
from label_support import natural

from mads.data.schema import DataError
from mads.label.base import attribute_schema, load_labeller, save_labeller, state_bytes, state_hash
from mads.label.domain import DomainLabeller
from mads.label.given import GivenLabel, GivenScore
from mads.label.quality import QualityLabeller
from mads.label.topic import TopicLabeller

MAKERS = {
    "quality": lambda: QualityLabeller(seed=1, columns=1 << 12),
    "topic": lambda: TopicLabeller(topics=4, seed=1, dimensions=10),
    "domain": DomainLabeller,
    "score": lambda: GivenScore("score", [0, 2.5, 5]),
    "label": lambda: GivenLabel("subject"),
}


def documents(count, seed=0):
    rng = np.random.default_rng(seed)
    return [replace(d, fields={"score": float(rng.uniform(0, 5)), "subject": d.domain}) for d in natural(count, seed)]


def same(one, other):
    return (
        one[0].tobytes() == other[0].tobytes()
        and (one[1] is None) == (other[1] is None)
        and (one[1] is None or one[1].tobytes() == other[1].tobytes())
    )


def check_round_trip(name, folder):
    fitted, fresh = MAKERS[name](), MAKERS[name]()
    fitted.fit(documents(200))
    save_labeller(folder / "labellers" / f"{name}.npz", fitted)
    load_labeller(folder / "labellers" / f"{name}.npz", fresh)
    unseen = documents(80, seed=3)
    assert same(fitted.label(unseen), fresh.label(unseen))
    assert fitted.schema() == fresh.schema() and attribute_schema("a", fitted) == attribute_schema("a", fresh)
    assert state_bytes(fitted.state()) == state_bytes(fresh.state())


def check_that_every_part_of_the_state_counts(folder):
    for name in MAKERS:
        check_round_trip(name, folder)


@pytest.mark.parametrize("name", MAKERS)
def test_a_labeller_comes_back_bit_for_bit(name, tmp_path):
    check_round_trip(name, tmp_path)


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_holds_numbers_only_and_equal_fits_give_equal_bytes(name):
    states = []
    for _ in range(2):
        labeller = MAKERS[name]()
        labeller.fit(documents(200))
        states.append(state_bytes(labeller.state()))
        assert all(array.dtype.kind in "uif" for array in labeller.state().values())
    assert states[0] == states[1]


def test_an_array_of_objects_is_no_state():
    with pytest.raises(TypeError, match="words"):
        state_bytes({"words": np.array(["a", None], dtype=object)})


def test_the_hash_is_of_the_state(tmp_path):
    one, two = DomainLabeller(), DomainLabeller()
    one.fit(documents(50))
    two.fit([d for d in documents(50) if d.domain != "law"])
    assert state_hash(one) != state_hash(two)
    assert attribute_schema("origin", one).name == "origin"
    assert attribute_schema("origin", one).provenance["state"] == state_hash(one)


def test_another_labeller_or_other_parameters_are_refused(tmp_path):
    path = tmp_path / "quality.npz"
    fitted = MAKERS["quality"]()
    fitted.fit(documents(100))
    save_labeller(path, fitted)
    with pytest.raises(DataError, match="is a mads.label.quality.QualityLabeller, the configuration asks for a .*Topic"):
        load_labeller(path, MAKERS["topic"]())
    with pytest.raises(DataError, match="seed: 1 there, 2 here"):
        load_labeller(path, QualityLabeller(seed=2, columns=1 << 12))
    newer = MAKERS["quality"]()
    newer.version = 99
    with pytest.raises(DataError, match="version"):
        load_labeller(path, newer)


@pytest.mark.parametrize("damage", ["missing", "cut", "noise", "array gone"])
def test_a_damaged_file_is_an_error_that_names_it(damage, tmp_path):
    path = tmp_path / "topic.npz"
    fitted = MAKERS["topic"]()
    fitted.fit(documents(100))
    save_labeller(path, fitted)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "noise":
        path.write_bytes(b"noise" * 100)
    else:
        path.write_bytes(state_bytes({k: v for k, v in fitted.state().items() if k != "weights"}))
    with pytest.raises(DataError, match="topic.npz"):
        load_labeller(path, MAKERS["topic"]())


def check_that_later_labels_stand_behind():
    """What an addition to a directory brings: known labels keep their codes, whatever the alphabet says."""
    for name in ("domain", "label"):
        _check_later_labels(name)


def _check_later_labels(name):
    labeller, known = MAKERS[name](), documents(60)
    labeller.fit(known)
    before, labels = labeller.label(known)[0], labeller.schema().labels
    new = [replace(d, domain="aardvarks", fields={"subject": "aardvarks"}) for d in known[:3]]
    assert labeller.new_labels(known + new) == ["aardvarks"] and labeller.new_labels(known) == []
    labeller.take_labels([*labels, "aardvarks"])
    assert labeller.schema().labels == (*labels, "aardvarks")
    assert np.array_equal(labeller.label(known)[0], before) and set(labeller.label(new)[0]) == {len(labels)}
    with pytest.raises(DataError, match="label anew"):
        labeller.take_labels(["aardvarks", *labels])


def test_later_labels_stand_behind():
    check_that_later_labels_stand_behind()


@pytest.mark.parametrize("labeller", [GivenLabel("subject", ["a", "b"]), GivenScore("score", [0, 1])])
def test_fixed_labels_take_no_others(labeller):
    labels = labeller.schema().labels
    assert labeller.new_labels(documents(30)) == []
    labeller.take_labels(labels)
    with pytest.raises(DataError, match=r"fixed, it cannot take \['c'\]"):
        labeller.take_labels([*labels, "c"])
