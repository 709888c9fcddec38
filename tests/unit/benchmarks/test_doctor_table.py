"""The table of docs/doctor.md is what its program gives today."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import doctor_table

    yield doctor_table
    sys.modules.pop("doctor_table")


@pytest.mark.parametrize(
    "layout, model, nodes, selection",
    [("zero1", "8B", 1, "random"), ("tp4 sp, pp2, zero1, selective", "3.6B", 4, "mads"), ("zero3, full", "1.3B", 1, "mads")],
)
def test_the_page_has_the_programs_numbers(program, layout, model, nodes, selection):
    page = (ROOT / "docs" / "doctor.md").read_text()
    tables = page.split(program.BEGIN)[1].split(program.END)[0].split("With rewards")
    row = next(x for x in tables[selection == "mads"].splitlines() if x.startswith(f"| {layout} | {nodes} |"))
    cell = row.split("|")[3 + list(program.MODELS).index(model)].strip()
    assert cell == program.cell(program.MODELS[model], program.LAYOUTS[layout], nodes, selection)
