"""The planner: cells, branch arithmetic, what is refused, which results go on."""

import json
from types import SimpleNamespace

import pytest

import mads.compare.plan as plan
from mads.config.comparison import compose_comparison, launcher_overrides, split_overrides
from mads.config.compose import ConfigError
from mads.config.schema import WSDScheduleConfig
from mads.train.schedule import learning_rate

RUN = [
    "data=prepared",
    "data.dir=somewhere",
    "model=nano",
    "train.steps=100",
    "train.global_batch_size=8",
    "schedule.warmup_steps=5",
    "selection.interval=20",
]
FILE = """
defaults: [comparison_schema, _self_]
strategies:
  mads: [selection=mads]
  random: [selection=random]
seeds: [3, 1]
overrides: {overrides}
treatment: mads
"""


@pytest.fixture(autouse=True)
def known_data(monkeypatch):
    manifest = SimpleNamespace(
        shards_fingerprint=lambda part: "pool", attributes=[SimpleNamespace(name="quality")], attribute_fingerprint=lambda p, n: n
    )
    monkeypatch.setattr(plan, "Manifest", SimpleNamespace(read=lambda path: manifest))


@pytest.fixture
def comparison(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE.replace("{overrides}", json.dumps(RUN)))
    return lambda *overrides: compose_comparison(str(path), overrides)


def test_cells_come_a_seed_at_a_time_with_the_control_first(comparison):
    cells = plan.make_cells(comparison("cooldown=0"))
    assert [c.name for c in cells] == ["random-3", "mads-3", "random-1", "mads-1"]
    assert {(c.steps, c.trunk_steps, c.branches, c.all_steps) for c in cells} == {(100, 100, (), 100)}
    assert all(f"train.seed={c.seed}" in c.trunk and c.settings["train.seed"] == c.seed for c in cells)
    assert len({c.digest for c in cells}) == 4 and cells[0].tokens_per_step == 8 * 128


def check_branches():
    """A branch's rate is, step by step, that of a run of its own length with schedule=wsd, and constant before it leaves."""
    for steps, cooldown, fraction in ((100, 0.2, 1.0), (100, 0.2, 0.4), (732, 0.2, 0.75), (31, 0.1, 0.6), (50, 0.33, 0.5)):
        branch = plan.branch_at(fraction, steps, cooldown)
        schedule = WSDScheduleConfig(name="wsd", warmup_steps=2, decay_fraction=cooldown)
        rates = [learning_rate(step, branch.steps, 1.0, schedule) for step in range(branch.steps)]
        assert branch.steps == round(fraction * steps)
        assert all(rate == 1.0 for rate in rates[2 : branch.start + 1])
        assert all(rate < 1.0 for rate in rates[branch.start + 1 :])
        assert branch.start == 0 or rates[branch.start - 1] == 1.0


def test_a_branch_leaves_the_trunk_where_its_decay_begins():
    check_branches()


def test_all_are_cooled_at_the_end_and_the_branched_ones_before_it_too(comparison):
    cells = {c.name: c for c in plan.make_cells(comparison("branches=[0.5,0.75]", "branched=[mads]"))}
    ends = {name: [(b.fraction, b.start, b.steps) for b in cell.branches] for name, cell in cells.items()}
    assert ends["random-1"] == [(1.0, 80, 100)]
    assert ends["mads-1"] == [(0.5, 40, 50), (0.75, 60, 75), (1.0, 80, 100)]
    mads = cells["mads-1"]
    assert mads.trunk_steps == 80 == cells["random-1"].trunk_steps and mads.all_steps == 80 + 10 + 15 + 20
    assert "schedule=constant" in mads.trunk and "checkpoint.keep_steps=[40,60,80]" in mads.trunk
    assert "schedule=wsd" in mads.branch and "schedule.decay_fraction=0.2" in mads.branch


def check_like():
    """A strategy like another one has its overrides, then its own, through any number of steps."""
    strategies = {"a": ["x=1", "y=1"], "c": ["like=b", "z=3"], "b": ["like=a", "y=2"], "d": ["x=0"]}
    assert plan.overrides_of(strategies, "c") == ["x=1", "y=1", "y=2", "z=3"]
    assert plan.overrides_of(strategies, "d") == ["x=0"] and strategies["c"] == ["like=b", "z=3"]


def test_a_strategy_may_be_like_another_one(comparison):
    check_like()
    longer = "strategies.longer=['like=mads','selection.probes=300','selection.interval=40']"
    whole = "strategies.longer=['selection=mads','selection.probes=300','selection.interval=40']"
    by_like, written_out = (plan.make_cells(comparison(override)) for override in (longer, whole))
    assert [c.digest for c in by_like] == [c.digest for c in written_out]
    assert by_like[2].settings["selection.probes"] == 300 != by_like[1].settings["selection.probes"]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["control=nobody"], "control='nobody' is not one of the strategies"),
        (["seeds=[1,1]"], "different numbers"),
        (["treatment=who"], "treatment='who'"),
        (["primary=mads"], "the treatment itself"),
        (["treatment=null", "primary=random"], "set treatment"),
        (["cooldown=0", "branches=[0.5]"], "set cooldown"),
        (["branches=[1.5]"], r"must lie in \(0, 1\)"),
        (["branched=[mads]"], "branches is empty"),
        (["branches=[0.5]", "branched=[x]"], "are not strategies"),
        (["apart=[boolq]"], "not evaluation tasks"),
        (["evaluation.arc=nowhere.jsonl"], "evaluation.arc=nowhere.jsonl is not a file"),
        (["strategies.a-b=['selection=random']"], "letters, digits and _"),
        (
            ["strategies.third=['like=nobody']"],
            r"strategy third: like=nobody is not one of the strategies .*mads.*random",
        ),
        (["strategies.third=['like=third']"], "strategy third: like= goes round in a circle: third -> third"),
        (["strategies.a=['like=b']", "strategies.b=['like=a']"], "circle: a -> b -> a"),
        (["strategies.third=['optim.lr=1e-3','like=mads']"], "strategy third: like=mads must be the first entry"),
        (["branches=[0.01]"], "within schedule.warmup_steps=5"),
        (["strategies.third=['selection=random','train.steps=50']"], "equal tokens"),
        (["strategies.third=['selection=random','train.seed=5']"], r"seeds=\[...\] lists the seeds"),
        (["strategies.third=['selection=random','schedule=cosine']"], "cooldown=0 keeps"),
        (["strategies.third=['selection=random','selection.probes=3']"], "strategy third: .*selection.probes|probes"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(comparison, overrides, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        plan.make_cells(comparison(*overrides))


def test_an_unknown_key_of_a_comparison_is_an_error(comparison, tmp_path):
    with pytest.raises(ConfigError, match="no_such"):
        comparison("+no_such=1")
    (tmp_path / "untyped.yaml").write_text("seeds: [1]\n")
    with pytest.raises(ConfigError, match="must begin with"):
        compose_comparison(str(tmp_path / "untyped.yaml"))
    with pytest.raises(ConfigError, match="demo, lab"):
        compose_comparison("nothing")


@pytest.mark.parametrize("name", ["demo", "lab"])
def test_the_comparisons_that_come_with_mads_plan_their_cells(name):
    config = compose_comparison(name)
    cells = plan.make_cells(config, run_overrides=["data.dir=somewhere"])
    assert len(cells) == len(config.strategies) * len(config.seeds)


def check_changes(folder, cells):
    """A result of the same settings goes on, whatever columns were added; another learning rate is named with both values."""
    path = plan.result_path(folder, cells[0].name)
    path.parent.mkdir()
    path.write_text(json.dumps({"settings": cells[0].settings | {"attributes.new": "x"}}))
    assert plan.changed_settings(cells, folder) == []
    path.write_text(json.dumps({"settings": cells[0].settings | {"optim.lr": 0.5, "attributes.quality": "other"}}))
    lines = "\n".join(plan.changed_settings(cells, folder))
    assert "optim.lr: 0.5 then, 0.001 now" in lines and "attributes.quality: 'other' then" in lines and cells[0].name in lines


def test_results_of_other_settings_are_named(comparison, tmp_path):
    check_changes(tmp_path, plan.make_cells(comparison("cooldown=0")))


def test_unfinished_runs_of_other_settings_are_named(comparison, tmp_path):
    cells = plan.make_cells(comparison("cooldown=0"))
    work = plan.work_folder(tmp_path, cells[1].name)
    work.mkdir(parents=True)
    (work / "cell.json").write_text(json.dumps({"settings": cells[1].settings | {"train.steps": 7}}))
    assert any("train.steps: 7 then, 100 now" in line for line in plan.changed_settings(cells, tmp_path))


def test_a_plan_is_read_as_it_was_written(comparison, tmp_path):
    config = comparison("branches=[0.5]")
    cells = plan.make_cells(config)
    plan.write_plan(tmp_path / "plan.json", cells, config, threads=1)
    other, read = plan.read_plan(tmp_path / "plan.json")
    assert list(read.values()) == cells and other["threads"] == 1 and other["evaluation"] == {}


def test_overrides_find_their_place():
    own, runs, sweep = split_overrides(
        ["seeds=[1]", "data.dir=x", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "+strategies.a=[]"]
    )
    assert (own, runs) == (["seeds=[1]", "+strategies.a=[]"], ["data.dir=x"])
    assert sweep == ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert launcher_overrides(1, []) == []
    assert launcher_overrides(3, []) == ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    with pytest.raises(ConfigError, match="--jobs 2 is for"):
        launcher_overrides(2, ["hydra/launcher=submitit_slurm"])


def test_a_launcher_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mads\[compare\]"):
        launcher_overrides(2, [])
