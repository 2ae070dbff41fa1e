"""Reads the file of a W&B run in offline mode: a log in LevelDB's format, of which each entry is a protobuf record."""

import json
import struct
import time
from pathlib import Path

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def entries(data):
    """Yield the entries of a log; each may be cut into pieces, of which none crosses the border of a block."""
    assert data[:4] == b":W&B"
    at, parts = HEADER, []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # what is left of a block is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts.append(data[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def read(run):
    """Finish a run; return its rows, its alerts, and the files of its artifacts, as its file has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    run.finish()
    (path,) = Path(run.settings.sync_dir).glob("*.wandb")
    records, latest = [], time.monotonic() + 60
    while not any(record.WhichOneof("record_type") == "exit" for record in records):  # another process writes the file
        assert time.monotonic() < latest, "the file of the run has no end"
        time.sleep(0.05)
        records = [Record.FromString(entry) for entry in entries(path.read_bytes())]
    rows, alerts, files = [], [], []
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if key not in ("_timestamp", "_runtime", "_wandb")})
        elif kind == "alert":
            alerts.append((record.alert.title, record.alert.text, record.alert.level))
        elif kind == "artifact":
            files += [(entry.path, entry.size) for entry in record.artifact.manifest.contents]
    return rows, alerts, files
