"""Compressed files as bounded streams: gzip, Zstandard and xz, several members or frames in a file included.

Nothing is held beyond a buffer and the codec's own window (Zstandard at most 128 MiB, xz at most XZ_MEMORY), however much a file
unpacks to: who reads lines or documents bounds those. A file that unpacks to over BOMB_BYTES and over BOMB_RATIO times its size
is damaged from there on, which bounds the time that a small file can take. Text packs to a third or a tenth.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

COMPRESSED = ("", ".gz", ".zst", ".xz")  # what may follow a format's own file ending
BOMB_BYTES, BOMB_RATIO = 1 << 30, 500
XZ_MEMORY = 1 << 28  # bytes; `xz -9` needs 65 MiB to unpack
_BUFFER = 1 << 16
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}
_ENDINGS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}


class DamagedStream(Exception):
    """A compressed stream that breaks off or does not decode; `codec` is gzip, zstd or xz."""

    def __init__(self, codec: str, detail: str):
        super().__init__(codec, detail)
        self.codec, self.detail = codec, detail


@contextmanager
def open_stream(path: str) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file as a buffered binary stream; compression is recognised by name or by content.

    Raises:
        OSError: the file cannot be opened or read.
        DamagedStream: from reads of the stream, at the place where it no longer decodes. What came before was given out.
    """
    with open(path, "rb") as plain:
        head = plain.peek(6)[:6]
        codec = next((c for ending, c in _ENDINGS.items() if path.endswith(ending)), None)
        codec = codec or next((c for magic, c in _MAGIC.items() if head.startswith(magic)), None)
        if codec is None or not head:  # an empty file holds nothing, whatever its name
            yield plain
            return
        read = {"gzip": lambda f: gzip.GzipFile(fileobj=f).read1, "zstd": _zstd_reader, "xz": lambda f: _XzReader(f).read}[codec]
        limit = max(BOMB_BYTES, BOMB_RATIO * os.fstat(plain.fileno()).st_size)
        yield io.BufferedReader(_Unpacked(codec, read(plain), limit), _BUFFER)


def _zstd_reader(file: BinaryIO):
    # Not read(): where that fails, pyarrow never frees the bytes that it was to fill.
    stream, held = pa.CompressedInputStream(file, "zstd"), memoryview(bytearray(_BUFFER))
    return lambda size: held[: stream.readinto(held[:size])]


class _Unpacked(io.RawIOBase):
    """Turns every way in which a codec fails into DamagedStream; an error of the disk has an errno and stays what it is."""

    def __init__(self, codec: str, read, limit: int):
        self._codec, self._read, self._left = codec, read, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._read(min(len(buffer), _BUFFER))
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise DamagedStream(self._codec, str(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise DamagedStream(self._codec, str(error)) from error
        self._left -= len(data)
        if self._left < 0:
            raise DamagedStream(self._codec, f"it unpacks to over {BOMB_RATIO} times its size, which no text does")
        buffer[: len(data)] = data
        return len(data)


class _XzReader:
    """lzma.LZMAFile has no memory limit, so the streams of a file are followed here."""

    def __init__(self, file: BinaryIO):
        self._file, self._input = file, b""
        self._codec: lzma.LZMADecompressor | None = None

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the proper end."""
        while True:
            if self._codec is None and not self._next_stream():
                return b""
            if self._codec.needs_input and not self._input:
                self._input = self._file.read(_BUFFER)
                if not self._input:
                    raise EOFError("the xz stream ended before its end marker was reached")
            data = self._codec.decompress(self._input, size)
            self._input = b""
            if self._codec.eof:
                self._input, self._codec = self._codec.unused_data, None
            if data:
                return data

    def _next_stream(self) -> bool:
        """Begin the next stream; zero bytes between and after streams are padding (xz format, section 2.2)."""
        while not (rest := self._input.lstrip(b"\x00")):
            self._input = self._file.read(_BUFFER)
            if not self._input:
                return False
        self._input, self._codec = rest, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
        return True
