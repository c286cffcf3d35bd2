import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.checked_json import checked_json, read_checked_json
from actors.messages import CorruptStorage

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "checksum"), values))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_record_comes_back_as_it_was(tmp_path: Path, record: dict[str, object]) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(checked_json(record))
    assert read_checked_json(path) == record


def test_a_flipped_bit_changes_nothing_silently(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = {"next_offset": 1_239, "names": ["a", "b"], "nested": {"10": 1, "9": 2.5}}
    whole = checked_json({**record, "nested": {10: 1, 9: 2.5}})
    num_refused = 0
    for place in range(len(whole) * 8):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = read_checked_json(path)
        except CorruptStorage:
            num_refused += 1
        else:
            # Only the checksum's own name, or a blank that became another blank.
            found = {name: value for name, value in found.items() if name in record}
            assert found == record
    assert num_refused > len(whole) * 8 * 0.7


def test_a_record_from_before_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"epoch": 3}))
    assert read_checked_json(path) == {"epoch": 3}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\0" * 512])
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(CorruptStorage, match=r"record\.json"):
        read_checked_json(path)
