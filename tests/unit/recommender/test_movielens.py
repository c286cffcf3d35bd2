from pathlib import Path

import pytest

from recommender.datasets import DatasetError, read_dataset
from recommender.movielens import movie

FLAGS_COMEDY_DRAMA = "0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0|0"
FLAGS_UNKNOWN = "1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0"


def _write_100k(folder: Path) -> None:
    (folder / "u.data").write_text("196\t2\t3\t881250949\n186\t1\t5\t881250948\n")
    lines = [
        f"1|Misérables, Les (1995)|01-Jan-1995||http://x|{FLAGS_COMEDY_DRAMA}",
        f"2|unknown||||{FLAGS_UNKNOWN}",
    ]
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")


def _write_1m(folder: Path) -> None:
    (folder / "ratings.dat").write_text("196::2::3::881250949\n186::1::5::881250948\n")
    lines = ["1::Misérables, Les (1995)::Comedy|Drama", "2::unknown::"]
    (folder / "movies.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")


def _write_latest(folder: Path) -> None:
    ratings = "userId,movieId,rating,timestamp\n196,2,3.0,881250949\n186,1,5.0,881250948\n"
    (folder / "ratings.csv").write_text(ratings)
    lines = [
        "movieId,title,genres",
        '1,"Misérables, Les (1995)",Comedy|Drama',
        "2,unknown,(no genres listed)",
    ]
    (folder / "movies.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("write", [_write_100k, _write_1m, _write_latest])
def test_all_published_layouts_give_the_same_stream(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    dataset = read_dataset(tmp_path)

    events = [(e.user_id, e.item_id, e.event_type, e.value) for e in dataset.events()]
    assert events == [("186", "1", "rating", 5.0), ("196", "2", "rating", 3.0)]
    assert dataset.timestamps_ms_N.tolist() == [881_250_948_000, 881_250_949_000]
    assert dataset.feedback_N.tolist() == [5, 3]
    first, second = dataset.items
    assert first.text == "Les Misérables (1995). Genres: Comedy, Drama."
    assert (first.title, first.categories) == ("Les Misérables", ("Comedy", "Drama"))
    assert first.attributes == {"year": 1995.0}
    assert (second.text, second.categories) == ("unknown.", ())


@pytest.mark.parametrize(
    ("full_title", "text"),
    [
        ("Usual Suspects, The (1995)", "The Usual Suspects (1995)."),
        ("Avventura, L' (1960)", "L'Avventura (1960)."),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)."),
        ("Paris, Texas (1984)", "Paris, Texas (1984)."),
        ("Seven (Se7en) (1995)", "Seven (Se7en) (1995)."),
        ("2001: A Space Odyssey (1968) ", "2001: A Space Odyssey (1968)."),
    ],
)
def test_the_article_comes_to_the_front_and_the_year_after_it(full_title: str, text: str) -> None:
    assert movie("1", full_title, ()).text == text


def test_times_that_are_milliseconds_already_stay_so(tmp_path: Path) -> None:
    _write_100k(tmp_path)
    (tmp_path / "u.data").write_text("196\t2\t3\t881250949000\n")

    assert read_dataset(tmp_path).timestamps_ms_N.tolist() == [881_250_949_000]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2\t3\tsoon\n", r"u\.data, line 2, column timestamp: 'soon'"),
        ("1\t2\tgood\t881250949\n", r"u\.data, line 2, column value: 'good'"),
        ("1\t2\t3\n", "expected 4 fields separated by"),
    ],
)
def test_a_bad_rating_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    _write_100k(tmp_path)
    (tmp_path / "u.data").write_text("1\t2\t3\t881250949\n" + line)

    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)
