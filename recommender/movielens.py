"""The three layouts in which GroupLens publishes MovieLens.

| release | ratings | movies | encoding |
|---|---|---|---|
| ml-100k | u.data, tab separated | u.item, 19 genre flags | latin-1 |
| ml-1m, ml-10m | ratings.dat, `::` separated | movies.dat | latin-1 |
| ml-latest, ml-20m, ml-25m, ml-32m | ratings.csv with a header | movies.csv | UTF-8 |

Source: Harper and Konstan 2015, The MovieLens Datasets, doi:10.1145/2827872.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from recommender.event_tables import MIN_TIMESTAMP_MS, DatasetError, Source, check_events, read_csv
from recommender.events import Attribute, Item

_LAYOUTS = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}
_GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
_NO_GENRES = ("unknown", "(no genres listed)", "")
_TITLE_AND_YEAR = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)$")
_ARTICLE_LAST = re.compile(
    r"^(?P<rest>.+), (?P<article>The|An?|Il|L'|La|Les?|El|Los|Las|Der|Die|Das|De|O)$"
)


def is_movielens(folder: Path) -> bool:
    """Whether the folder holds the two files of one of the three layouts."""
    return any(
        (folder / ratings).is_file() and (folder / movies).is_file()
        for ratings, movies in _LAYOUTS.items()
    )


def read_movielens(folder: Path) -> tuple[pd.DataFrame, list[Item]]:
    """The event table (see `event_tables`) and the items of a MovieLens folder, in file order.

    Raises:
        DatasetError: If a file cannot be read or an entry cannot be right.
    """
    if (folder / "u.data").is_file():
        ratings = _separated(folder / "u.data", "\t", ("user_id", "item_id", "value", "timestamp"))
        events = _check_ratings(ratings, folder / "u.data")
        return events, _movies_100k(folder / "u.item")
    if (folder / "ratings.dat").is_file():
        names = ("user_id", "item_id", "value", "timestamp")
        ratings = _separated(folder / "ratings.dat", "::", names)
        events = _check_ratings(ratings, folder / "ratings.dat")
        movies = _separated(folder / "movies.dat", "::", ("item_id", "title", "genres"))
        return events, _movies(movies)
    renamed = {"userId": "user_id", "movieId": "item_id", "rating": "value"}
    ratings = read_csv(folder / "ratings.csv").rename(columns=renamed)
    movies = read_csv(folder / "movies.csv").rename(columns=renamed)
    missing = {"item_id", "title", "genres"} - set(movies.columns)
    if missing:
        raise DatasetError(f"{folder / 'movies.csv'}: no column {', '.join(sorted(missing))}")
    return _check_ratings(ratings, folder / "ratings.csv"), _movies(movies)


def movie(movie_id: str, full_title: str, genres: tuple[str, ...]) -> Item:
    """An item whose text is `title (year). Genres: a, b.` with the article moved to the front."""
    match = _TITLE_AND_YEAR.match(full_title.strip())
    title = match["title"] if match else full_title.strip()
    if article := _ARTICLE_LAST.match(title):
        space = "" if article["article"].endswith("'") else " "
        title = f"{article['article']}{space}{article['rest']}"
    attributes: dict[str, Attribute] = {"year": float(match["year"])} if match else {}
    text = f"{title} ({match['year']})." if match else f"{title}."
    if genres:
        text += f" Genres: {', '.join(genres)}."
    return Item(movie_id, text, title, genres, attributes)


def _check_ratings(ratings: pd.DataFrame, file: Path) -> pd.DataFrame:
    ratings = ratings.assign(event_type="rating")
    if "timestamp" in ratings:
        # Published in seconds; a copy that someone converted to ms stays as it is.
        time = pd.to_numeric(ratings["timestamp"], errors="coerce")
        is_seconds = time.abs() < MIN_TIMESTAMP_MS
        as_ms = time.where(~is_seconds, time * 1000)
        # What is no number stays as it was written, for the message of the check.
        ratings["timestamp"] = as_ms.astype(object).where(time.notna(), ratings["timestamp"])
    return check_events(ratings, Source(file, "line"))


def _separated(path: Path, separator: str, names: tuple[str, ...]) -> pd.DataFrame:
    """A headerless file of fields between separators, as strings, indexed by line number."""
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    fields = pd.Series(lines, index=np.arange(1, len(lines) + 1), dtype=str)
    fields = fields[fields != ""]
    frame = fields.str.split(separator, expand=True, regex=False)
    if frame.shape[1] < len(names) or frame[len(names) - 1].isna().any():
        raise DatasetError(f"{path}: expected {len(names)} fields separated by {separator!r}")
    return frame[list(range(len(names)))].set_axis(list(names), axis=1)


def _movies(movies: pd.DataFrame) -> list[Item]:
    columns = (movies[name].tolist() for name in ("item_id", "title", "genres"))
    return [
        movie(movie_id, title, tuple(g for g in genres.split("|") if g not in _NO_GENRES))
        for movie_id, title, genres in zip(*columns, strict=True)
    ]


def _movies_100k(path: Path) -> list[Item]:
    """Fields of u.item: id, title (year), two dates, a link, then a 0/1 flag for each genre."""
    names = ("item_id", "title", "date", "video_date", "link", *_GENRES_100K)
    frame = _separated(path, "|", names)
    items = []
    for movie_id, title, _, _, _, *flags in frame.itertuples(index=False, name=None):
        marked = zip(_GENRES_100K, flags, strict=True)
        genres = tuple(g for g, flag in marked if flag == "1" and g not in _NO_GENRES)
        items.append(movie(movie_id, title, genres))
    return items
