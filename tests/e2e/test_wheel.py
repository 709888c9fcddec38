"""An installed wheel works away from the repository, with its configuration, and takes no name of its own but `mads`."""

import shutil
import sys
import zipfile

import pytest
from command_support import REPOSITORY, run

SOURCES = ("mads", "conf", "kernels", "launch", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the checkout keeps no build folders."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist"]
    done = run([sys.executable, "-m", "pip", "wheel", *options, folder], folder)
    assert done.returncode == 0, done.stderr
    return next((folder / "dist").glob("mads-*.whl"))


def test_the_wheel_holds_one_package_and_every_file_of_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert len(top) == 2 and "mads" in top and any(name.endswith(".dist-info") for name in top), top
    for folder in ("mads", "conf", "kernels", "launch"):
        inside = "mads" if folder == "mads" else f"mads/{folder}"
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".sh", ".sbatch"):
                assert f"{inside}/{path.relative_to(REPOSITORY / folder)}" in names, path


def test_an_installed_wheel_finds_its_configuration_from_anywhere(wheel, tmp_path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--no-deps", "--no-index", "--target", target]
    assert run([sys.executable, "-m", "pip", "install", *options, wheel], tmp_path).returncode == 0
    where = "import mads.cli, mads.conf, mads.launch.processes, mads.kernels; print(mads.conf.__file__, mads.cli.__file__)"
    done = run([sys.executable, "-c", where], elsewhere, PYTHONPATH=str(target))
    assert done.stdout.split() == [str(target / "mads" / "conf" / "__init__.py"), str(target / "mads" / "cli.py")], done.stderr
    done = run([sys.executable, "-m", "mads.cli", "train", "--cfg", "job", "model=paper_1b3"], elsewhere, PYTHONPATH=str(target))
    assert done.returncode == 0 and "hidden_size: 2048" in done.stdout and "run_dir: runs/mads" in done.stdout, done.stderr
