"""One preparation as all of its processes know it: what is read, with which settings, into which directory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mads.data.documents import Source, unit_count
from mads.data.megatron import TokenFilesSource
from mads.data.references import ReferenceSource
from mads.data.schema import Manifest
from mads.data.settings import PrepareSettings
from mads.label.base import Labeller

_GROUP_BYTES = 4_000_000  # of small files that are surveyed together; a folder may hold millions of them


@dataclass(frozen=True)
class Job:
    """It travels to worker processes, so everything in it can be pickled; labellers are not fitted yet.

    identity: settings, source (without hashes of its files), references and labellers as JSON values
    before: the manifest of the directory that documents are added to; None when it is first prepared
    """

    directory: Path
    source: Source
    labellers: dict[str, Labeller]
    references: ReferenceSource | None
    settings: PrepareSettings
    identity: dict[str, Any]
    before: Manifest | None = None

    @property
    def work(self) -> Path:
        return self.directory / "work"

    @property
    def generation(self) -> int:
        return 0 if self.before is None else len(self.before.generations)

    @property
    def first_shard(self) -> int:
        """Number of the first shard that this generation writes."""
        return 0 if self.before is None else len(self.before.parts["train"]["shards"])

    @property
    def takes_tokens(self) -> bool:
        """Whether the source's files are taken as they are: a shard is a file of the source, with indices of ours."""
        return isinstance(self.source, TokenFilesSource)

    @property
    def record(self) -> dict[str, Any]:
        """What job.json holds."""
        before = self.before.fingerprint if self.before is not None else None
        return {"generation": self.generation, "before": before, **self.identity}

    def list_name(self, kind: str) -> str:
        """File name of this generation's list of what was `rejected` or `removed`."""
        return f"{kind}.jsonl" if self.generation == 0 else f"{kind}-{self.generation:04d}.jsonl"

    def result(self, stage: str, index: int, ending: str) -> Path:
        """Where a task's result lies, relative to the directory."""
        return Path("work") / stage / f"{index:05d}{ending}"

    @cached_property
    def groups(self) -> list[range]:
        """The source's units, cut into stretches that are surveyed as one task each. A function of the sizes at the begin, not of
        those that files have when some process looks at them."""
        if not self.source.files:
            return [range(unit_count(self.source))]
        groups, first, size = [], 0, 0
        for unit, entry in enumerate(self.identity["source"]["files"]):
            size += entry["bytes"]
            if size >= _GROUP_BYTES:
                groups.append(range(first, unit + 1))
                first, size = unit + 1, 0
        return groups + ([range(first, len(self.source.files))] if first < len(self.source.files) else [])

    @property
    def categories(self) -> list[str]:
        """Record fields whose values are some labeller's labels."""
        return sorted({field for labeller in self.labellers.values() for field in labeller.categories})
