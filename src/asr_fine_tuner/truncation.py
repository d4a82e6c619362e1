"""Audio files that end too early, found from their containers where the decoders would return half without an error."""

from __future__ import annotations

import struct

# Some writers count their own header into the size of the data chunk. 64 bytes are 2 ms of 16 kHz PCM.
_SIZE_SLACK_BYTES = 64
# Sizes from here on stand for "unknown, I was writing to a pipe": sox writes 0x7FFFF000 and more, FFmpeg 0xFFFFFFFF.
_STREAMED_SIZE = 0x7FFF_F000


def missing_bytes(data: bytes) -> str | None:
    """What shows that the file goes on beyond `data`, in the formats that decode without an error when they are cut."""
    magic = data[:4]
    if magic in (b"RIFF", b"RF64", b"RIFX", b"FORM"):
        return _missing_from_chunks(data)
    if magic == b".snd":
        start, size = struct.unpack_from(">II", data.ljust(12, b"\0"), 4)
        return _overrun("audio data", start + size - len(data)) if size < _STREAMED_SIZE else None
    if magic == b"OggS":
        return _missing_from_pages(data)
    if data[4:8] == b"ftyp":
        return _missing_from_boxes(data)
    if magic == b"\x1aE\xdf\xa3":
        return _missing_from_segment(data)
    return None


def _missing_from_chunks(data: bytes) -> str | None:
    """WAV and AIFF: chunks of a name, a 32-bit size and a body padded to an even length, after a 12-byte header."""
    size_format = "<I" if data[:4] in (b"RIFF", b"RF64") else ">I"
    position = 12
    while position + 8 <= len(data):
        name = data[position : position + 4]
        (size,) = struct.unpack_from(size_format, data, position + 4)
        if name in (b"data", b"SSND"):
            # RF64 keeps the size, 64 bits, in the ds64 chunk that comes first (EBU Tech 3306).
            if data[:4] == b"RF64" and size == 0xFFFF_FFFF and len(data) >= 36:
                (size,) = struct.unpack_from("<Q", data, 28)
            elif size >= _STREAMED_SIZE:
                return None
            return _overrun("audio data", position + 8 + size - len(data))
        position += 8 + size + size % 2
    return None


def _missing_from_pages(data: bytes) -> str | None:
    """Ogg: pages of a 27-byte header, a table of segment lengths and the segments (RFC 3533, section 6)."""
    position = data.rfind(b"OggS")
    n_segments = data[position + 26] if position + 26 < len(data) else 255
    body = position + 27 + n_segments
    return _overrun("the last Ogg page", body + sum(data[position + 27 : body]) - len(data), slack=0)


def _missing_from_boxes(data: bytes) -> str | None:
    """MP4, M4A, MOV: boxes of a 32-bit size, a name and a body (ISO/IEC 14496-12, section 4.2).

    Size 0 reaches to the end of the file; after size 1 a 64-bit size follows the name.
    """
    position = 0
    while position + 16 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size < 8:
            return None
        if name in (b"moov", b"moof", b"mdat") and position + size > len(data):
            return _overrun(f"the {name.decode()} box", position + size - len(data), slack=0)
        position += size
    return None


def _missing_from_segment(data: bytes) -> str | None:
    """Matroska, WebM: an EBML header and a segment, each an identifier of 4 bytes, a size and a body (RFC 8794)."""
    position = 0
    while position + 5 <= len(data):
        name = data[position : position + 4]
        # The leading zero bits of the first byte say how many more bytes the size has; all ones is "unknown".
        width = 9 - data[position + 4].bit_length()
        digits = data[position + 4 : position + 4 + width]
        largest = (1 << 7 * width) - 1
        size = int.from_bytes(digits, "big") & largest
        position += 4 + width + size
        if name == b"\x18\x53\x80\x67" and size != largest:
            return _overrun("the segment", position - len(data), slack=0)
    return None


def _overrun(part: str, n_bytes: int, slack: int = _SIZE_SLACK_BYTES) -> str | None:
    return f"{n_bytes} bytes of {part} are missing" if n_bytes > slack else None
