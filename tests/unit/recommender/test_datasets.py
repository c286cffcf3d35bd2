import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recommender.datasets import Dataset, DatasetError, read_dataset, read_examples
from recommender.events import EVENT_TYPES, feedback_code

HEADER = "user_id,item_id,event_type,value,timestamp_ms\n"
GOOD_LINE = "ann,tea,click,1,1700000000000\n"


def _csv(folder: Path, *lines: str) -> Path:
    path = folder / "events.csv"
    path.write_text(HEADER + "".join(lines))
    return path


def _json_lines(folder: Path, *records: dict[str, Any], name: str = "events.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _events(dataset: Dataset) -> list[tuple[str, str, int]]:
    return [(e.user_id, e.item_id, e.timestamp_ms) for e in dataset.events()]


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    events = pd.DataFrame(
        {
            "user_id": ["ann", "bob", "ann"],
            "item_id": ["tea", "pot", "cup"],
            "event_type": ["purchase", "return", "rating"],
            "value": [6.0, -2.0, 3.5],
            "timestamp": [1_300_000_002_000, 1_300_000_001_000, 1_300_000_003_000],
            "session_id": ["a", "b", "c"],
        }
    )
    items = pd.DataFrame(
        {
            "item_id": ["cup", "pot", "tea"],
            "text": ["a cup.", "a pot.", "some tea."],
            "title": ["CUP", "POT", "TEA"],
            "categories": [["china"], [], ["drinks", "hot"]],
            "price": [1.5, None, 3.0],
        }
    )
    folder = tmp_path / "shop"
    folder.mkdir()
    events.to_parquet(folder / "interactions.parquet")
    items.to_parquet(folder / "items.parquet")
    return folder


def test_a_parquet_folder_gives_its_events_in_time_order(parquet_folder: Path) -> None:
    dataset = read_dataset(parquet_folder)

    assert _events(dataset) == [
        ("bob", "pot", 1_300_000_001_000),
        ("ann", "tea", 1_300_000_002_000),
        ("ann", "cup", 1_300_000_003_000),
    ]
    assert dataset.user_ids == ("bob", "ann")
    assert dataset.rows_N.tolist() == [1, 2, 0]
    assert dataset.values_N.tolist() == [-2.0, 6.0, 3.5]
    assert dataset.rows_N.dtype == np.int32
    assert dataset.timestamps_ms_N.dtype == np.int64


def test_item_texts_are_kept_and_scalars_become_attributes(parquet_folder: Path) -> None:
    cup, pot, tea = read_dataset(parquet_folder).items

    assert (tea.text, tea.title, tea.categories) == ("some tea.", "TEA", ("drinks", "hot"))
    assert cup.attributes == {"price": 1.5}
    assert pot.attributes == {}


def test_items_without_a_catalogue_have_their_id_as_text(parquet_folder: Path) -> None:
    (parquet_folder / "items.parquet").unlink()

    assert [item.text for item in read_dataset(parquet_folder).items] == ["pot", "tea", "cup"]


def test_an_item_missing_from_the_catalogue_is_added_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,categories\nnew,A new one,a|b\n")
    with caplog.at_level(logging.WARNING):
        dataset = read_dataset(_csv(tmp_path, GOOD_LINE))

    assert [item.text for item in dataset.items] == ["A new one", "tea"]
    assert dataset.items[0].categories == ("a", "b")
    assert dataset.rows_N.tolist() == [1]
    assert "count=1" in caplog.text


def test_event_ids_depend_on_the_index_alone(parquet_folder: Path) -> None:
    dataset = read_dataset(parquet_folder)

    assert [event.event_id for event in dataset.events()] == ["shop-0", "shop-1", "shop-2"]
    assert list(dataset.events(1, 2)) == list(dataset.events())[1:2]


def test_tied_timestamps_keep_the_order_of_the_file(tmp_path: Path) -> None:
    lines = [f"u{i},i{i},click,1,{1700000000000 + i % 2}\n" for i in range(50)]
    users = [event.user_id for event in read_dataset(_csv(tmp_path, *lines)).events()]

    assert users == [f"u{i}" for i in (*range(0, 50, 2), *range(1, 50, 2))]


def test_feedback_codes_are_those_of_single_events(tmp_path: Path) -> None:
    lines = [f"u,i{n},{kind},1,1700000000000\n" for n, kind in enumerate(EVENT_TYPES)]
    lines += [f"u,r{n},rating,{n / 2},1700000000000\n" for n in range(12)]
    dataset = read_dataset(_csv(tmp_path, *lines))

    expected = [feedback_code(event.event_type, event.value) for event in dataset.events()]
    assert dataset.feedback_N.tolist() == expected


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    lines = _json_lines(
        tmp_path,
        {"user_id": "ann", "item_id": "tea", "timestamp_ms": 1_700_000_000_000},
        {"user_id": "bob", "item_id": 7, "timestamp_ms": 1_700_000_000_001, "extra": [1]},
    )
    _json_lines(tmp_path, {"item_id": "tea", "text": "Green tea"}, name="items.jsonl")
    csv = _csv(tmp_path, GOOD_LINE, "\n", "bob,7,click,1,1700000000001\n")

    assert _events(read_dataset(lines)) == _events(read_dataset(csv))
    assert [item.text for item in read_dataset(lines).items] == ["Green tea", "7"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ann,tea,click,nan,1700000000000\n", "line 3, column value: 'nan' is no finite number"),
        ("ann,tea,click,inf,1700000000000\n", "line 3, column value: 'inf' is no finite number"),
        ("ann,tea,click,2e9,1700000000000\n", r"'2e9' is outside \[-1000000000, 1000000000\]"),
        ("\nann,,click,1,1700000000000\n", "line 4, column item_id: '' is no id"),
        ("ann,tea,click,1,1700000000\n", r"column timestamp_ms: '1700000000' is outside \["),
        ("ann,tea,click,1,1700000000000000000\n", r"is outside \[100000000000, 10000000000000\]"),
        ("ann,tea,click,1,2024-01-01\n", "line 3, column timestamp_ms: '2024-01-01'"),
        (",tea,click,1,1700000000000\n", "line 3, column user_id: '' is no id"),
        ("ann,tea,clik,1,1700000000000\n", "line 3, column event_type: 'clik' is none of view,"),
        ("ann,tea\n", "line 3, column event_type: ''"),
        ("ann,tea,click,1,1700000000000,9\n", "Expected 5 fields in line 3, saw 6"),
        ('ann,"tea,click,1,1700000000000\n', "cannot be read as CSV"),
    ],
)
def test_a_bad_line_is_refused_with_its_place_and_value(
    tmp_path: Path, line: str, message: str
) -> None:
    path = _csv(tmp_path, GOOD_LINE, line, GOOD_LINE)

    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user_id"\n', "line 1: not JSON"),
        ("[1]\n", "line 1: not a JSON object"),
        (
            '\n{"user_id": "a", "item_id": null, "timestamp_ms": 1700000000000}\n',
            "line 2, column it",
        ),
        (
            '{"user_id": "a", "item_id": 1.5, "timestamp_ms": 1700000000000}\n',
            "neither a string nor",
        ),
        (
            '{"user_id": "a", "item_id": [1], "timestamp_ms": 1700000000000}\n',
            "neither a string nor",
        ),
        ('{"user_id": "a", "item_id": "b"}\n', "no column timestamp_ms"),
        ("", "no column"),
    ],
)
def test_bad_json_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text)

    with pytest.raises(DatasetError, match=message):
        read_dataset(path)


def test_missing_columns_are_named_beside_those_found(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,product\nann,tea\n")

    with pytest.raises(
        DatasetError, match="no column item_id, timestamp_ms; found user_id, product"
    ):
        read_dataset(path)


def test_a_parquet_value_that_is_missing_is_refused(parquet_folder: Path) -> None:
    path = parquet_folder / "interactions.parquet"
    pd.read_parquet(path).assign(value=[1.0, np.nan, 1.0]).to_parquet(path)

    with pytest.raises(DatasetError, match="row 1, column value"):
        read_dataset(parquet_folder)


def test_an_item_that_stands_twice_in_the_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,text\ntea,a\ntea,b\n")

    with pytest.raises(DatasetError, match="line 3, column item_id: 'tea' stands there twice"):
        read_dataset(_csv(tmp_path, GOOD_LINE))


@pytest.mark.parametrize("name", ["nothing", "notes.txt"])
def test_what_is_no_data_is_refused_with_what_was_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(DatasetError, match=r"expected a folder with interactions\.parquet"):
        read_dataset(tmp_path / name)


def test_labelled_texts_keep_their_splits(tmp_path: Path) -> None:
    examples = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "split": ["train", "test"]})
    examples.to_parquet(tmp_path / "examples.parquet")

    assert read_examples(tmp_path).splits == ("train", "test")
    assert read_examples(tmp_path).labels == ("x", "y")


def test_labelled_texts_without_splits_are_all_for_training(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).to_parquet(
        tmp_path / "examples.parquet"
    )

    assert read_examples(tmp_path).splits == ("train", "train")


def test_labelled_texts_without_labels_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "examples.parquet")

    with pytest.raises(DatasetError, match="no column label"):
        read_examples(tmp_path)
