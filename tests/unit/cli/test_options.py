"""What a newcomer types first: --help, --cfg job, and an option that does not exist."""

import pytest
import yaml

from mads.cli import main


@pytest.mark.parametrize("command", ["prepare", "label", "doctor", "train", "compare", "export", "report"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith(f"usage: mads {command}")
    assert command in ("export", "report") or "[key=value ...]" in said


@pytest.mark.parametrize("command", ["prepare", "label", "doctor", "train"])
def test_cfg_shows_the_configuration_with_its_overrides(command, capsys):
    assert main([command, "--cfg", "job", "train.steps=7", "model=nano"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["steps"] == 7 and shown["model"]["hidden_size"] == 32


@pytest.mark.parametrize("command", ["prepare", "label", "doctor", "train"])
def test_an_option_that_does_not_exist_is_named(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--stepz=3"])
    assert ended.value.code == 2 and "unknown option --stepz=3" in capsys.readouterr().err
