"""logging.profile on a real run of two ranks: what is in the trace, who writes it, and that the run computes the same."""

import gzip
import json

from harness import run_ranks
from run_support import curve


def train(prepared, run_dir, overrides):
    import torch.distributed as dist
    from run_support import run_config, trainer

    made = trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
    made.run()
    return made.profiler.first


def test_the_ranks_asked_for_write_a_trace_and_a_table_of_the_steps_asked_for(prepared, tmp_path):
    common = ["selection=random", "train.steps=7", "selection.interval=4"]
    firsts = run_ranks(2, train, prepared, str(tmp_path / "run"), [*common, "logging.profile={start: 5, steps: 2, ranks: [1]}"])
    assert firsts == [None, 5]
    folder = tmp_path / "run" / "profile"
    names = ["steps-5-6.rank-1.operators.txt", "steps-5-6.rank-1.trace.json.gz"]
    assert sorted(p.name for p in folder.iterdir()) == names
    trace = json.loads(gzip.decompress((folder / names[1]).read_bytes()))["traceEvents"]
    spans = [e["name"] for e in trace if e.get("cat") == "user_annotation"]
    assert spans.count("mads.train") == spans.count("mads.loader") == 2
    assert spans.count("mads.selection") == 1  # the second round begins with step 5
    assert spans.count("mads.evaluation") == 1  # after step 6
    table = (folder / names[0]).read_text()
    assert "aten::mm" in table and "Self CPU" in table
    run_ranks(2, train, prepared, str(tmp_path / "plain"), common)
    assert not (tmp_path / "plain" / "profile").exists()
    assert curve(tmp_path / "run") == curve(tmp_path / "plain")
