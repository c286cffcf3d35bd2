"""Read JSON (RFC 8259) so that a document means one thing only, or is refused.

Python's reader takes NaN, duplicate keys, numbers that overflow and lone surrogates; each of them
means something else to the next program, so this one refuses them.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

MAX_DEPTH = 16
MAX_INTEGER = 2**53
"""Beyond it a double (and so every JavaScript client) cannot tell neighbours apart."""
MAX_NUMBER_CHARS = 64

Fault = Literal["malformed-json", "non-finite-number", "duplicate-key", "invalid-text"]


class JsonRefused(ValueError):
    """A body that is not acceptable JSON. `fault` names the kind; `position` is a byte offset."""

    def __init__(self, fault: Fault, detail: str, position: int | None = None) -> None:
        super().__init__(fault, detail, position)
        self.fault = fault
        self.detail = detail if position is None else f"{detail} at byte {position}"
        self.position = position


def read_json(body: bytes) -> Any:
    """Parse one JSON document in UTF-8.

    Raises:
        JsonRefused: For anything but one well-formed document: wrong encoding, byte order mark,
            trailing text, nesting beyond MAX_DEPTH, integers beyond MAX_INTEGER, duplicate keys,
            NaN or infinities (also by overflow), lone surrogates and NUL in strings.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonRefused("malformed-json", "invalid UTF-8", error.start) from None
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        position = len(text[: error.pos].encode("utf-8"))
        raise JsonRefused("malformed-json", "not one JSON document", position) from None
    except RecursionError:
        raise JsonRefused("malformed-json", f"nested deeper than {MAX_DEPTH}") from None
    _check_depth(document)
    if "\\u" in text:  # the only way to write a surrogate or NUL that decoding did not refuse
        _check_strings(document)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise JsonRefused("duplicate-key", "an object has the same key twice")
    return members


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise JsonRefused("malformed-json", f"a number of more than {MAX_NUMBER_CHARS} characters")
    number = int(text)
    if abs(number) > MAX_INTEGER:
        raise JsonRefused("malformed-json", "an integer beyond 2^53")
    return number


def _float(text: str) -> float:
    if len(text) > MAX_NUMBER_CHARS:
        raise JsonRefused("malformed-json", f"a number of more than {MAX_NUMBER_CHARS} characters")
    number = float(text)
    if not math.isfinite(number):
        raise JsonRefused("non-finite-number", "a number too large for a double")
    return number


def _constant(_: str) -> float:
    raise JsonRefused("non-finite-number", "NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)


def _check_depth(document: Any) -> None:
    """Level by level, so that the check itself cannot recurse."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node) if type(child) in _CONTAINERS]
        if not level:
            return
    raise JsonRefused("malformed-json", f"nested deeper than {MAX_DEPTH}")


_CONTAINERS = (dict, list)


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node


def _check_strings(node: Any) -> None:
    """Recursion is safe here: the depth has been checked."""
    if isinstance(node, str):
        if "\x00" in node or any("\ud800" <= char <= "\udfff" for char in node):
            raise JsonRefused("invalid-text", "a string has NUL or half of a surrogate pair")
    elif isinstance(node, dict):
        for key, child in node.items():
            _check_strings(key)
            _check_strings(child)
    elif isinstance(node, list):
        for child in node:
            _check_strings(child)
