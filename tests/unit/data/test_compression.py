"""Compressed streams against files written by the codecs' own libraries."""

import gzip
import json
import lzma
import random
import subprocess
import sys
import tracemalloc
import zlib

import pytest
import zstandard
from reject_support import rejected_lines

from mads.data.compression import XZ_MEMORY, DamagedStream, open_stream
from mads.data.documents import read_lines
from mads.data.rejects import Rejects

PACK = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "xz": lzma.compress,
}
CODEC = {"gz": "gzip", "zst": "zstd", "xz": "xz"}


def content(lines=300, seed=0):
    rng = random.Random(seed)
    return b"".join(
        json.dumps({"n": i, "text": f"{rng.getrandbits(rng.choice((60, 900))):x}"}).encode() + b"\n" for i in range(lines)
    )


@pytest.mark.parametrize("ending", PACK)
def test_every_codec_by_name_and_by_content_with_several_members(tmp_path, ending):
    first, second = content(seed=1), content(seed=2)
    packed = PACK[ending](first) + PACK[ending](b"") + PACK[ending](second)
    for name in (f"in.jsonl.{ending}", "in.jsonl"):
        (tmp_path / name).write_bytes(packed)
        with open_stream(str(tmp_path / name)) as stream:
            assert stream.read() == first + second
    (tmp_path / f"empty.{ending}").write_bytes(b"")
    with open_stream(str(tmp_path / f"empty.{ending}")) as stream:
        assert stream.read() == b""


def test_padding_of_xz_and_skippable_frames_of_zstandard_hold_nothing(tmp_path):
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"one") + b"\x00" * 8 + lzma.compress(b"two") + b"\x00" * 4)
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    (tmp_path / "a.zst").write_bytes(PACK["zst"](b"one") + skippable + PACK["zst"](b"two"))
    for name in ("a.xz", "a.zst"):
        with open_stream(str(tmp_path / name)) as stream:
            assert stream.read() == b"onetwo"


@pytest.mark.parametrize("ending", PACK)
def test_any_truncation_and_any_garbage_is_damage(tmp_path, ending):
    packed = PACK[ending](content())
    path = tmp_path / f"in.{ending}"
    cuts = [1, 5, 7, len(packed) // 2, len(packed) - 9, len(packed) - 1]
    for broken in [packed[:cut] for cut in cuts] + [packed + b"garbage after the end", b"no compression at all"]:
        path.write_bytes(broken)
        with open_stream(str(path)) as stream, pytest.raises(DamagedStream) as caught:
            stream.read()
        assert caught.value.codec == CODEC[ending] and caught.value.detail


@pytest.mark.parametrize("ending", PACK)
def test_fuzz_lines_before_the_damage_are_exact_and_the_damage_is_counted(tmp_path, ending):
    rng = random.Random(3)
    raw = content(200)
    lines, packed, path = raw.split(b"\n")[:-1], PACK[ending](raw), tmp_path / f"in.jsonl.{ending}"
    damaged = 0
    for _ in range(300):
        broken = bytearray(packed)
        for _ in range(rng.randrange(3)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        broken = broken[: rng.randrange(1, len(broken) + 1)] if rng.random() < 0.5 else broken
        path.write_bytes(bytes(broken))
        rejects = Rejects()
        found = list(read_lines(str(path), "in", rejects))
        *blank, last = [("", 0), *rejected_lines(rejects)]  # a flipped bit may make a line end
        numbers = sorted([number for number, _ in found] + [line for reason, line in blank[1:] if reason == "blank line"])
        assert numbers == list(range(1, len(found) + len(blank[1:]) + 1))
        if rejects.total:
            damaged += 1
            assert last == (f"damaged {CODEC[ending]}", len(numbers) + 1)
        else:
            assert [line for _, line in found] == lines  # checksums: what does not fail is whole
    assert 100 < damaged < 300


@pytest.mark.parametrize("ending", PACK)
def test_a_bomb_of_one_line_is_one_reject_in_bounded_memory(tmp_path, ending):
    path = tmp_path / f"in.jsonl.{ending}"
    bomb = PACK[ending](b'{"text": "' + b"a" * 150_000_000 + b'"}\n{"text": "after"}\n')
    assert len(bomb) < 300_000
    path.write_bytes(bomb)
    del bomb
    rejects = Rejects()
    tracemalloc.start()
    try:
        found = list(read_lines(str(path), "in", rejects, max_line_bytes=1_000_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [(2, b'{"text": "after"}')]
    assert rejects.counts == {"line too long": 1}
    assert peak < 16_000_000  # xz keeps a dictionary of 8 MiB


def test_xz_that_asks_for_too_much_memory_is_damage(tmp_path):
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}])
    path = tmp_path / "in.xz"
    path.write_bytes(packer.compress(b"text") + packer.flush())
    with open_stream(str(path)) as stream:
        assert stream.read() == b"text"
    raw = bytearray(path.read_bytes())
    # Block header (xz format 3.1): size, flags, filter id, property size, dictionary code, padding, CRC32.
    assert raw[14] == lzma.FILTER_LZMA2 and raw[15] == 1
    raw[16] = 34
    assert 2 ** (raw[16] // 2 + 12) > XZ_MEMORY
    raw[20:24] = zlib.crc32(bytes(raw[12:20])).to_bytes(4, "little")
    path.write_bytes(bytes(raw))
    with open_stream(str(path)) as stream, pytest.raises(DamagedStream, match="[Mm]emory"):
        stream.read()


_READ_DAMAGED = """
import resource, sys
from mads.data.files import FilesSource
from mads.data.rejects import Rejects
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
rejects = Rejects()
for _ in range(100):
    assert not list(FilesSource([sys.argv[1]]).documents(rejects))
print(rejects.total)
"""


@pytest.mark.parametrize("ending", PACK)
def test_damaged_text_files_leave_no_memory_behind(tmp_path, ending):
    """Each read asks for up to 64 MiB; what pyarrow was to fill when it failed was never freed."""
    path = tmp_path / f"in.txt.{ending}"
    path.write_bytes(PACK[ending](content())[:-20])
    done = subprocess.run([sys.executable, "-c", _READ_DAMAGED, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == "100", done.stderr[-500:]
