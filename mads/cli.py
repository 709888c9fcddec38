"""The command `mads`: prepare, label, doctor, train, submit, watch, eval, export, compare, report, explain."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

USAGE = """usage: mads COMMAND [ARGUMENTS]

  prepare [--workers N] [--append] [key=value ...]
                                       documents -> tokens, attributes, references, manifest; goes on with what was interrupted
  label [--remove NAME] [key=value ...]
                                       show, add, replace or remove attributes of a prepared directory
  doctor [--nodes N] [--gpus-per-node G] [--gpu-memory-gb M] [--host-memory-gb H] [key=value ...]
                                       what a configuration needs of a cluster: errors, grid, batches, memory; no GPU needed
  doctor --preflight [--workers N] [key=value ...]
                                       what a run needs of its machines, tried on every rank: folder, clocks, ports, versions
  train [--workers N] [key=value ...]  pretrain with online data selection; continues the run in run_dir if there is one
  submit [--dry-run] [key=value ...]   the same as a job of Slurm: writes its script, gives it to sbatch (cluster.nodes=N ...)
  watch RUN [--once] [--interval SECONDS]
                                       a run in the terminal, while it trains or afterwards
  eval RUN|CHECKPOINT [TASK=FILE ...] [--apart TASK] [--out FILE] [--limit N] [--examples]
       [--harness TASK ... --include-path DIR [--num-fewshot N] [--batch-size N]]
                                       bits per byte of question plus right answer; tasks of lm-evaluation-harness
  export RUN|CHECKPOINT --out DIR [--dtype float32|bfloat16|float16] [--max-shard-gb N] [--data DIR]
                                       a folder that transformers loads: weights, config, tokenizer
  compare [--jobs N] [--folder F] [--only STRATEGY ...] [--report] compare=NAME|path.yaml [key=value ...]
                                       strategies x seeds at equal tokens: a table with intervals and a page; restartable
  report RUN [--compare RUN ...]       one HTML page from a run folder
  explain RUN --sample ID --round R [--json] [--data DIR]
                                       why a sample was or was not chosen: decides the round again from the run folder

  train --cfg job [key=value ...]      show the whole configuration
Every key=value is a Hydra override of conf/."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 1 failed, or a layout does not fit, 2 bad input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "prepare": prepare,
        "label": label,
        "doctor": doctor,
        "train": train,
        "submit": submit,
        "watch": watch,
        "eval": evaluate,
        "export": export,
        "compare": compare,
        "report": report,
        "explain": explain,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    command = commands.get(arguments[0])
    if command is None:
        print(f"mads: there is no command {arguments[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    from mads.config.compose import ConfigError
    from mads.data.schema import DataError

    try:
        return command(arguments[1:])
    except (ConfigError, DataError) as error:
        print(f"mads {arguments[0]}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"mads {arguments[0]}: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mads {arguments[0]}: interrupted", file=sys.stderr)
        return 130


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's options, and its Hydra overrides."""
    parser.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [key=value ...]"
    parser.epilog = "Every key=value is a Hydra override of conf/; --cfg job shows all keys and their values."
    known, overrides = parser.parse_known_args(arguments)
    unknown = [o for o in overrides if o.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}; configuration keys are given as key=value")
    return known, overrides


def prepare(arguments: list[str]) -> int:
    """`mads prepare`: see mads.data.prepare."""
    from mads.config.compose import ConfigError, compose, to_dict, to_yaml
    from mads.config.factory import build, build_all
    from mads.config.validate import validate
    from mads.data.prepare import default_workers
    from mads.data.prepare import prepare as prepare_data
    from mads.data.settings import PrepareSettings

    parser = argparse.ArgumentParser(prog="mads prepare")
    parser.add_argument("--workers", type=int, help="processes on this machine; default: one per core, if there is enough to do")
    parser.add_argument("--append", action="store_true", help="add these documents to the complete directory data.dir")
    known, overrides = _parse(parser, arguments)
    config = compose(overrides)
    if known.cfg:
        print(to_yaml(config), end="")
        return 0
    validate(config, None, overrides=overrides)  # how many processes will train is not known yet
    data = config.data
    if not data.source:
        raise ConfigError("data=prepared has no source to prepare from; choose data=jsonl data.paths=[...] or data=demo")
    settings = PrepareSettings(
        vocab_size=config.model.vocab_size,
        seq_length=data.seq_length,
        min_sample_tokens=data.min_sample_tokens,
        heldout_fraction=data.heldout_fraction,
        heldout_group_field=data.heldout_group_field,
        shard_megabytes=data.shard_megabytes,
        seed=data.seed,
        max_rejected_fraction=data.max_rejected_fraction,
        tokenizer_kind=data.tokenizer.kind,
        tokenizer_path=data.tokenizer.path,
        tokenizer_megabytes=data.tokenizer.train_megabytes,
        exact_duplicates=data.hygiene.exact_duplicates,
        near_duplicates=data.hygiene.near_duplicates,
        decontaminate=data.hygiene.decontaminate,
        evaluation_paths=dict(data.hygiene.evaluation_paths),
    )
    source = build(data.source, "data.source")
    # A corpus without reference tasks can be prepared; selections that need rewards refuse it with a remedy.
    has_references = "reference_paths" not in data or data.reference_paths
    prepare_data(
        data.dir,
        source=source,
        labellers=build_all(data.attributes, "data.attributes"),
        references=build(data.references, "data.references") if has_references else None,
        settings=settings,
        attribute_settings=to_dict(config)["data"]["attributes"],
        progress=lambda line: print(line, flush=True),
        workers=known.workers if known.workers is not None else default_workers(source, len(os.sched_getaffinity(0))),
        append=known.append,
    )
    return 0


def label(arguments: list[str]) -> int:
    """`mads label`: see mads.label.relabel and mads.label.summary."""
    from mads.config.compose import ConfigError, compose, to_dict, to_yaml
    from mads.config.factory import build_all
    from mads.label.prepared import read_column_file
    from mads.label.relabel import label_prepared, remove_attributes
    from mads.label.summary import as_text, summarize
    from mads.report.labels import write_label_page

    parser = argparse.ArgumentParser(
        prog="mads label",
        description="Show the attributes of a prepared directory (data=prepared data.dir=DIR); first add or replace those that "
        "data.attributes.NAME._target_=... names.",
    )
    parser.add_argument("--remove", action="append", default=[], metavar="NAME", help="take this attribute out")
    parser.add_argument("--workers", type=int, default=1, help="processes that label shards; default: 1")
    parser.add_argument("--page", help="where the page goes; default: labels.html in the directory")
    known, overrides = _parse(parser, arguments)
    config = compose(overrides)
    if known.cfg:
        print(to_yaml(config), end="")
        return 0
    data = to_dict(config)["data"]
    if data["source"] or data["dir"] == "???":
        raise ConfigError("mads label works on a prepared directory: mads label data=prepared data.dir=DIR")
    if known.workers < 1:
        raise ConfigError(f"--workers={known.workers} must be at least 1")
    if known.remove:
        remove_attributes(data["dir"], known.remove)
    nodes = {name: dict(node) for name, node in data["attributes"].items()}
    files = {name: node.pop("column") for name, node in nodes.items() if "column" in node}
    labellers = build_all(nodes, "data.attributes")
    columns = {}
    for name, path in files.items():
        columns |= read_column_file(path, labellers[name].fields)
    if labellers:
        label_prepared(data["dir"], labellers, columns, data["seed"], known.workers, lambda line: print(line, flush=True))
    summary = summarize(data["dir"])
    print(as_text(summary))
    page = known.page or f"{data['dir']}/labels.html"
    write_label_page(summary, page)
    print(f"page: {page}")
    return 0


def doctor(arguments: list[str]) -> int:
    """`mads doctor`: see mads.doctor."""
    from mads.config.compose import compose, to_yaml
    from mads.doctor.command import examine, preflight_command
    from mads.launch.processes import strip_launcher_arguments

    parser = argparse.ArgumentParser(
        prog="mads doctor", description="Check a configuration for a cluster and estimate its memory; exit code 1: does not fit."
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines; default: 1")
    parser.add_argument("--gpus-per-node", type=int, default=1, help="GPUs of each; default: 1")
    parser.add_argument("--gpu-memory-gb", type=float, default=80.0, help="GiB of one GPU; default: 80")
    parser.add_argument("--host-memory-gb", type=float, default=0.0, help="GiB of a machine; default: not checked")
    parser.add_argument("--preflight", action="store_true", help="instead: try these machines; srun mads doctor --preflight ...")
    parser.add_argument("--workers", type=int, help="of a preflight: processes on this machine; default: one")
    parser.add_argument("--wait", type=float, default=60.0, help="of a preflight: seconds for each check; default: 60")
    known, overrides = _parse(parser, strip_launcher_arguments(arguments))
    config = compose(overrides)
    if known.cfg:
        print(to_yaml(config), end="")
        return 0
    if known.preflight:
        return preflight_command(config, known.workers, known.wait, overrides)
    text, code = examine(config, known.nodes, known.gpus_per_node, known.gpu_memory_gb, known.host_memory_gb, overrides)
    print(text)
    return code


def train(arguments: list[str]) -> int:
    """`mads train`: check the configuration, then start the workers, or become the only one."""
    import torch

    from mads.config.compose import ConfigError, compose, to_yaml
    from mads.config.validate import validate
    from mads.launch.processes import place, run_workers
    from mads.train import worker

    parser = argparse.ArgumentParser(prog="mads train")
    parser.add_argument("--workers", type=int, help="processes on this machine; default: one per GPU, or one")
    known, overrides = _parse(parser, arguments)
    if known.cfg:
        print(to_yaml(compose(overrides)), end="")
        return 0
    launched = place()
    if launched is not None:
        if known.workers is not None:
            raise ConfigError(f"--workers is not for a launched job: the launcher has started {launched.world_size} processes")
        return worker.main(overrides)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    workers = known.workers if known.workers is not None else max(1, gpus)
    if workers < 1:
        raise ConfigError(f"--workers={workers} must be at least 1")
    if 0 < gpus < workers:
        raise ConfigError(f"--workers={workers}, but this machine has {gpus} GPUs; every worker needs one of its own")
    validate(compose(overrides), workers, torch.cuda.is_available(), overrides)
    return worker.main(overrides) if workers == 1 else run_workers(workers, overrides)


def submit(arguments: list[str]) -> int:
    """`mads submit`: see mads.launch.submit."""
    from mads.config.cluster import compose_cluster, split_overrides
    from mads.config.compose import compose, to_yaml
    from mads.launch.submit import submit as submit_job

    parser = argparse.ArgumentParser(prog="mads submit", description="Submit `mads train` with these keys as a job of Slurm.")
    parser.add_argument("--dry-run", action="store_true", help="print the script and the commands, write and submit nothing")
    known, overrides = _parse(parser, arguments)
    if known.cfg:
        own, run = split_overrides(overrides)
        print(to_yaml({"cluster": compose_cluster(own)}) + to_yaml(compose(run)), end="")
        return 0
    return submit_job(overrides, known.dry_run)


def watch(arguments: list[str]) -> int:
    """`mads watch`: see mads.watch."""
    from mads.watch.command import watch_command

    return watch_command(arguments)


def evaluate(arguments: list[str]) -> int:
    """`mads eval`: see mads.train.evaluation."""
    from mads.checkpoint.manifest import CheckpointError
    from mads.config.compose import ConfigError
    from mads.train.evaluation import eval_command

    try:
        return eval_command(arguments)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def export(arguments: list[str]) -> int:
    """`mads export`: see mads.export."""
    from mads.export.command import export_command

    return export_command(arguments)


def compare(arguments: list[str]) -> int:
    """`mads compare`: see mads.compare."""
    import torch

    from mads.compare.command import compare_command

    return compare_command(arguments, torch.cuda.is_available())


def report(arguments: list[str]) -> int:
    """`mads report`: see mads.report."""
    from mads.report.command import report_command

    return report_command(arguments)


def explain(arguments: list[str]) -> int:
    """`mads explain`: see mads.explain."""
    from mads.explain.command import explain_command

    return explain_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
