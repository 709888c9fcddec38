"""Who may import whom (DESIGN.md section 2), read from the sources."""

import pytest
from source_tree import below, not_allowed, reaches, read_all, read_module, room_of

# Room -> what of mads it may import beside itself. A longer name is a room of its own.
ROOMS = {
    "mads": (),
    "mads.noise": (),
    "mads.paths": (),
    "mads.topology": (),
    "mads.collectives": (),
    "mads.layout": (),
    "mads.conf": (),
    "mads.kernels": (),
    "mads.launch": ("mads.config",),
    "mads.config": (),
    "mads.tensor": ("mads.collectives", "mads.kernels", "mads.layout"),
    "mads.model": ("mads.collectives", "mads.kernels", "mads.tensor", "mads.topology"),
    "mads.data": ("mads.noise", "mads.paths", "mads.label.base", "mads.hygiene"),
    "mads.hygiene": (
        "mads.data.cutting",
        "mads.data.schema",
    ),
    "mads.label": ("mads.noise", "mads.paths", "mads.data"),
    "mads.agents": (),
    "mads.console": ("mads.noise", "mads.topology", "mads.collectives", "mads.agents", "mads.reward.probes"),
    "mads.reward": ("mads.noise", "mads.data", "mads.eval.losses", "mads.train.interface"),
    "mads.reward.probes": ("mads.noise", "mads.agents"),
    "mads.eval": ("mads.noise", "mads.collectives", "mads.data", "mads.train.interface"),
    "mads.checkpoint": ("mads.collectives", "mads.data.schema", "mads.layout", "mads.paths"),
    # The model's names elsewhere; what a saved run is, it asks mads.train.inference, which knows no DeepSpeed.
    "mads.export": (
        "mads",
        "mads.checkpoint",
        "mads.config.compose",
        "mads.data",
        "mads.logging.environment",
        "mads.model.shape",
        "mads.train.inference",
    ),
    "mads.logging": ("mads.console.record", "mads.paths"),
    "mads.report": ("mads.console.record", "mads.data.schema", "mads.label.summary", "mads.logging"),
    "mads.watch": ("mads.console.record", "mads.data.schema", "mads.logging"),
    "mads.train.interface": ("mads.data.batch",),
    "mads.train": (
        "mads.agents",
        "mads.checkpoint",
        "mads.collectives",
        "mads.config",
        "mads.console",
        "mads.data",
        "mads.eval",
        "mads.export",
        "mads.kernels",
        "mads.label",
        "mads.launch",
        "mads.layout",
        "mads.logging",
        "mads.model",
        "mads.noise",
        "mads.reward",
        "mads.tensor",
        "mads.topology",
    ),
    # Knows shapes, layouts and rules, to count what a run would need; never the training code, which imports DeepSpeed.
    "mads.doctor": (
        "mads.collectives",
        "mads.config",
        "mads.data.schema",
        "mads.kernels",
        "mads.launch",
        "mads.layout",
        "mads.logging",
        "mads.model",
        "mads.tensor.init",
        "mads.topology",
    ),
    # Opens a run's parts as training does, but builds no model and needs no DeepSpeed.
    "mads.explain": (
        "mads.agents",
        "mads.console",
        "mads.data",
        "mads.logging",
        "mads.noise",
        "mads.train.growth",
        "mads.train.members",
    ),
    # Runs commands, and reads what they wrote: it knows a model's shape, to count FLOPs, and no model.
    "mads.compare": (
        "mads.config",
        "mads.console.record",
        "mads.data",
        "mads.launch",
        "mads.logging",
        "mads.model.shape",
        "mads.report",
    ),
    "mads.cli": (
        "mads.checkpoint.manifest",
        "mads.compare",
        "mads.config",
        "mads.data",
        "mads.doctor",
        "mads.explain",
        "mads.export",
        "mads.label",
        "mads.launch",
        "mads.report",
        "mads.train.evaluation",
        "mads.train.worker",
        "mads.watch",
    ),
}
# Library -> the only modules that may import it.
LIBRARIES = {
    "torch.distributed": ("mads.topology", "mads.collectives"),
    "deepspeed": (
        "mads.train.engine",
        "mads.train.optimizer_state",
        "mads.train.passes",
        "mads.train.pipeline",
        "mads.train.reward_model",
    ),
    "hydra": ("mads.config",),
    "rich": ("mads.watch",),
    "tensorboardX": ("mads.logging.tensorboard",),
    "wandb": ("mads.logging.wandb",),
    "sentencepiece": ("mads.data.tokenizer", "mads.export.tokenizer_json"),
    "safetensors": ("mads.checkpoint",),
    "lm_eval": ("mads.train.harness",),
}
BLIND = (
    "config",
    "topology",
    "collectives",
    "layout",
    "noise",
    "tensor",
    "data",
    "hygiene",
    "label",
    "agents",
    "console",
    "logging",
    "report",
)


@pytest.fixture(scope="module")
def package():
    return read_all()


def test_every_module_imports_only_what_its_room_may(package):
    assert len(package) > 60
    assert [line for module in package.values() for line in not_allowed(module, ROOMS)] == []


def test_no_room_keeps_a_right_that_it_does_not_use(package):
    for room, allowed in ROOMS.items():
        used = {i for module in package.values() if room_of(module.name, ROOMS) == room for i in module.imports}
        assert [a for a in allowed if not any(below(i, a) for i in used)] == [], room


def test_libraries_have_their_one_place(package):
    wrong = [
        f"{module.name} imports {imported}"
        for library, owners in LIBRARIES.items()
        for module in package.values()
        for imported in module.imports
        if below(imported, library) and not any(below(module.name, owner) for owner in owners)
    ]
    assert wrong == []
    for library, owners in LIBRARIES.items():  # an owner that no longer needs its library loses the right to it
        for owner in owners:
            users = [m for m in package.values() if below(m.name, owner) and any(below(i, library) for i in m.imports)]
            assert users, f"{owner} does not import {library}"


@pytest.mark.parametrize("room", BLIND)
def test_rooms_that_know_nothing_of_the_model_do_not_reach_it_by_any_path(package, room):
    imports = {name: module.imports for name, module in package.items()}
    starts = [name for name in package if below(name, f"mads.{room}")]
    assert starts
    for start in starts:
        far = reaches(start, imports)
        found = sorted(n for n in far if below(n, "mads.train") or below(n, "deepspeed") or below(n, "mads.model"))
        assert found == [], f"{start} reaches {found}"


def test_reward_and_evaluation_reach_the_model_through_its_interface_only(package):
    imports = {name: module.imports for name, module in package.items()}
    for room in ("reward", "eval"):
        for start in (name for name in package if below(name, f"mads.{room}")):
            found = {n for n in reaches(start, imports) if below(n, "mads.train") or below(n, "mads.model")}
            assert found <= {"mads.train", "mads.train.interface"}, start


def test_no_module_outside_of_launch_reads_or_sets_the_environment(package):
    touching = {name: module.environment for name, module in package.items() if module.environment}
    assert all(below(name, "mads.launch") for name in touching), touching
    assert "mads.launch.processes" in touching  # the check sees what there is


def test_nothing_is_imported_by_a_star(package):
    assert {name: module.wildcards for name, module in package.items() if module.wildcards} == {}


# ---------------------------------------------------------------- the checker itself, on sources that break the rules


@pytest.mark.parametrize(
    "name, source, complaint",
    [
        (
            "mads.data.pool",
            "from mads.train.engine import TrainEngine",
            "mads.data.pool imports mads.train.engine; mads.data may",
        ),
        ("mads.console.decide", "def f():\n    import mads.model.decoder", "mads.console.decide imports mads.model.decoder"),
        ("mads.reward.influence", "from mads.train import reward_model", "imports mads.train.reward_model"),
        ("mads.tensor.layers", "from mads import model", "imports mads.model"),
        ("mads.agents.label", "from ..train import loop", "imports mads.train.loop"),
        ("mads.reward.probes", "from mads.train.interface import Vector", "mads.reward.probes may import mads.noise"),
        ("mads.noise", "import mads.topology", "may import nothing of mads"),
        ("elsewhere.thing", "import mads", "belongs to no room"),
    ],
)
def test_a_forbidden_import_is_found(name, source, complaint):
    known = ["mads.train.reward_model", "mads.model", "mads.train.loop"]
    found = list(not_allowed(read_module(name, source, known), ROOMS))
    assert len(found) == 1 and complaint in found[0]


def test_an_allowed_import_is_not():
    source = "import torch\nfrom mads.train.interface import Vector\nfrom mads.reward.probes import Probes"
    assert list(not_allowed(read_module("mads.reward.influence", source), ROOMS)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "import torch\ntorch.distributed.barrier()",
    ],
)
def test_every_way_to_torch_distributed_is_seen(source):
    assert any(below(i, "torch.distributed") for i in read_module("mads.x", source).imports)


@pytest.mark.parametrize(
    "source",
    ["import os\nx = os.environ['A']", "import os\nos.getenv('A')", "from os import environ", "import os\nos.putenv('A', 'b')"],
)
def test_every_way_to_the_environment_is_seen(source):
    assert read_module("mads.x", source).environment
    assert not read_module("mads.x", "import os\nos.replace('a', 'b')\nrun.environment").environment


def test_reach_follows_several_steps_and_parents():
    imports = {"a": frozenset({"b.c"}), "b": frozenset({"d"}), "b.c": frozenset(), "d": frozenset({"deepspeed"})}
    assert reaches("a", imports) == {"a", "b", "b.c", "d", "deepspeed"}
