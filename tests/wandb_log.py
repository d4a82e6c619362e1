"""Reads the log that the W&B client keeps of an offline run, to see what `wandb sync` would upload."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FILE_HEADER = 7  # ":W&B", a magic number and a version
_BLOCK = 32 * 1024  # https://github.com/google/leveldb/blob/main/doc/log_format.md
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class LoggedRun:
    """A run as logged. history: one entry for each `log`. raw: every byte, to search for what must not be in it."""

    id: str = ""
    name: str = ""
    project: str = ""
    host: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    exit_code: int | None = None
    raw: bytes = b""


def read_run(path: Path) -> LoggedRun:
    from wandb.proto import wandb_internal_pb2

    run = LoggedRun(raw=path.read_bytes())
    for data in _records(run.raw):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type") or ""
        run.kinds.add(kind)
        if kind == "run":
            run.id, run.name = record.run.run_id, record.run.display_name
            run.project, run.host = record.run.project, record.run.host
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(raw: bytes) -> Iterator[bytes]:
    position, parts = _FILE_HEADER, b""
    while position + _CHUNK_HEADER.size <= len(raw):
        left = _BLOCK - position % _BLOCK
        if left < _CHUNK_HEADER.size:
            position += left
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(raw, position)
        position += _CHUNK_HEADER.size
        chunk = raw[position : position + length]
        position += length
        parts = chunk if kind in (_FULL, _FIRST) else parts + chunk
        if kind in (_FULL, _LAST):
            yield parts
