"""Which checkpoint a run goes on from: the newest whole one. Damaged ones before it are passed over, told, and set aside.

A checkpoint that somebody names (`mads eval`, `train.branch_from`) is never exchanged for another one: `find_latest` and `verify`
raise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mads.checkpoint.manifest import CheckpointError, FormatError, checkpoints, point, verify

SHOWN = 5  # damaged checkpoints that a message names


@dataclass
class Search:
    """path: the newest whole checkpoint, verified, or None; damaged: the newer ones, newest first, each with what is wrong."""

    path: Path | None = None
    damaged: list[tuple[Path, str]] = field(default_factory=list)

    def told(self) -> str:
        """What was passed over and why, in one line."""
        more = f"; and {len(self.damaged) - SHOWN} more" if len(self.damaged) > SHOWN else ""
        return "; ".join(f"{path.name}: {why}" for path, why in self.damaged[:SHOWN]) + more


def search(root: Path) -> Search:
    """Verify checkpoints, the newest first, until one is whole. The pointer `latest` is for people: the folders' names say more.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
        FormatError: a checkpoint of another version of mads, which is not damaged.
        OSError: a file that is there cannot be read, which is no proof of damage either.
    """
    found = Search()
    for path in checkpoints(root):
        try:
            verify(path)
        except FormatError:
            raise
        except CheckpointError as error:
            found.damaged.append((path, str(error)))
            continue
        found.path = path
        return found
    if found.damaged:
        raise CheckpointError(
            f"none of {len(found.damaged)} checkpoints in {root} is whole: {found.told()}; restore one, or remove all to start "
            "again"
        )
    return found


def find_latest(root: Path) -> Path | None:
    """The newest checkpoint, verified; None if there is none. Changes nothing, for others may be using the folder.

    Raises:
        CheckpointError: it is damaged; the newest whole checkpoint before it is offered, not silently taken.
    """
    found = search(root)
    if found.damaged:
        error = found.damaged[0][1]
        raise CheckpointError(f"{error}; the newest whole checkpoint before it is {found.path}: name it, or resume the run")
    return found.path


def set_aside(root: Path, found: Search) -> str | None:
    """Rename the damaged checkpoints, so that nothing takes them for checkpoints, and have `latest` name the whole one. For the
    one process that owns the folder. Whenever a kill ends this, the next search finds what is left of it.

    Returns:
        a message of what was passed over, why, and where it is now; None if nothing was.

    Raises:
        CheckpointError: it cannot be done; a damaged one that stayed would count as one of the checkpoints to keep.
    """
    if not found.damaged:
        return None
    names = []
    try:
        point(root, found.path.name)
        for path, _ in found.damaged:
            name, count = f"{path.name}.damaged", 1
            while (root / name).exists():
                count += 1
                name = f"{path.name}.damaged-{count}"
            os.rename(path, root / name)
            names.append(name)
    except OSError as error:
        raise CheckpointError(
            f"damaged checkpoints ({found.told()}) cannot be set aside: {error}; make {root} writable, or rename them"
        ) from error
    count = len(names)
    return (
        f"{count} damaged checkpoint{'s' * (count > 1)} passed over, going on from {found.path.name}: {found.told()}; now "
        f"{', '.join(names)} in {root}, remove {'them' if count > 1 else 'it'} when no longer wanted"
    )
