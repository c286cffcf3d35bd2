"""What the JSON reader takes, and every kind of document that it refuses."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.strict_json import MAX_DEPTH, MAX_INTEGER, JsonRefused, read_json

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(value=_VALUES, ensure_ascii=st.booleans())
def test_a_plain_document_is_read_as_it_was_written(value: Any, ensure_ascii: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ensure_ascii).encode()) == value


@given(body=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_but_never_break_the_reader(body: bytes) -> None:
    with contextlib.suppress(JsonRefused):
        read_json(body)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b"{} {}", "malformed-json"),
        (b"{} x", "malformed-json"),
        (b"{'a':1}", "malformed-json"),
        (b'{"a":1,}', "malformed-json"),
        (b'"\xff"', "malformed-json"),
        (b"\xef\xbb\xbf{}", "malformed-json"),
        ('{"a":1}'.encode("utf-16"), "malformed-json"),
        ('{"a":1}'.encode("utf-16-le"), "malformed-json"),
        ('{"a":1}'.encode("utf-32-be"), "malformed-json"),
        (b'"a\x00b"', "malformed-json"),
        (b'"a\nb"', "malformed-json"),
        (b'{"a":NaN}', "non-finite-number"),
        (b"[Infinity]", "non-finite-number"),
        (b"-Infinity", "non-finite-number"),
        (b'{"a":[1e400]}', "non-finite-number"),
        (b'{"a":1,"b":2,"a":1}', "duplicate-key"),
        (b'[{"x":{"a":1,"\\u0061":2}}]', "duplicate-key"),
        (str(2**53 + 1).encode(), "malformed-json"),
        (str(-(2**53) - 1).encode(), "malformed-json"),
        (b"1" * 5_000, "malformed-json"),
        (b"0." + b"1" * 64, "malformed-json"),
        (b'"\\ud800"', "invalid-text"),
        (b'{"\\udfff":1}', "invalid-text"),
        (b'["a\\u0000"]', "invalid-text"),
        (b"[" * 100_000, "malformed-json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "malformed-json"),
    ],
)
def test_a_document_that_others_might_read_differently_is_refused(body: bytes, fault: str) -> None:
    with pytest.raises(JsonRefused) as refused:
        read_json(body)
    assert refused.value.fault == fault


def test_nesting_is_allowed_up_to_the_bound_and_not_beyond() -> None:
    assert read_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None
    with pytest.raises(JsonRefused):
        read_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_a_surrogate_pair_is_one_character() -> None:
    assert read_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_the_largest_numbers_are_read() -> None:
    assert read_json(str(MAX_INTEGER).encode()) == MAX_INTEGER
    assert math.isclose(read_json(b"1e308"), 1e308)


def test_a_refusal_names_the_byte_and_not_the_character() -> None:
    with pytest.raises(JsonRefused) as refused:
        read_json('["äö" x]'.encode())
    assert refused.value.position == 8
