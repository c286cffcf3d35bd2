"""Small JSON records with a checksum in them, so that a changed digit is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.durable_files import sha256_of
from actors.messages import CorruptStorage

_CHECKSUM = "checksum"


def checked_json(record: Mapping[str, Any]) -> bytes:
    """A record as JSON for people, with the SHA-256 of its values.

    Raises:
        TypeError: If it holds what JSON cannot.
    """
    as_read = json.loads(json.dumps(record))
    return json.dumps({**as_read, _CHECKSUM: _checksum(as_read)}, indent=2).encode() + b"\n"


def read_checked_json(path: Path) -> dict[str, Any]:
    """The record in a file; one without a checksum, from before there was any, is believed.

    Raises:
        CorruptStorage: If it cannot be read or is not what was written.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptStorage(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise CorruptStorage(f"{path} does not hold an object")
    checksum = record.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(record):
        raise CorruptStorage(f"{path} does not have the checksum that is in it")
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())
