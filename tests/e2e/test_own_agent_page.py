"""docs/agents.md as a reader would follow it: its blocks are copied into files outside the package, its command is run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_support import REPOSITORY, environment, settings
from run_support import prepare_small

from mads.config.compose import ConfigError, compose
from mads.config.factory import build

PAGE = REPOSITORY / "docs" / "agents.md"


def blocks():
    """{language: text} of the page's fenced blocks; each language occurs once."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert sorted(language for language, _ in found) == ["bash", "python", "yaml"]
    return dict(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: the page's two files under the names that their first lines give, and prepared data."""
    folder = tmp_path_factory.mktemp("reader")
    for language in ("python", "yaml"):
        text = blocks()[language]
        path = folder / re.match(r"# ([\w./]+?)(?::|\n)", text).group(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    prepare_small(folder / "data")
    return folder


def call(folder, run_dir, *overrides):
    """The page's command, word for word, with the overrides of a tiny run behind it."""
    tiny = settings(folder / "data" / "prepared", run_dir, "selection.warmup_rounds=0", "selection.probes=60", *overrides)
    line = f"{blocks()['bash'].strip()} " + " ".join(f"'{o}'" for o in tiny)
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(PATH=path), capture_output=True, text=True, timeout=300
    )


def test_the_page_s_agent_trains_decides_and_is_saved(folder, tmp_path):
    done = call(folder, tmp_path / "run", "train.steps=6", "selection.interval=3", "schedule=constant")
    assert done.returncode == 0, done.stderr[-3000:]
    decided = [json.loads(line) for line in (tmp_path / "run" / "decisions.jsonl").read_text().splitlines()]
    assert [list(d["theta"]) for d in decided] == [["quality", "domain", "topic", "likeness", "length"]] * 2
    assert decided[0]["agent_rewards"]["length"] == 0.0 != decided[1]["agent_rewards"]["length"]  # judged before it learns
    [state] = [json.loads(p.read_text()) for p in (tmp_path / "run" / "checkpoints").glob("step-*/state.json")]
    assert state["console"]["agents"]["length"]["memory"]["slope"] != 0.0


def test_its_yaml_composes_and_its_signature_is_its_schema(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    where, key = [f"hydra.searchpath=[file://{folder}/my_conf]", "agents=length"], "agents.members.length"
    assert build(compose(where).agents.members.length, key, name="length").rate == 0.3
    wrong = compose([*where, f"{key}.speed=1"]).agents.members.length
    with pytest.raises(ConfigError, match=r"agents.members.length: .*'speed'; it takes attribute \(required\), name, rate"):
        build(wrong, key, name="length")


def test_the_page_s_agent_is_about_twenty_lines():
    code = [line for line in blocks()["python"].splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]
    assert 5 < len(code) <= 20
