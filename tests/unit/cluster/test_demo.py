from __future__ import annotations

from dataclasses import replace

from actors.messages import Manifest, VersionInfo
from cluster.demo import version_counts

NEWEST = Manifest(
    version=9,
    parent=7,
    created_ms=0,
    trained_through=(99, 99),
    num_items=3,
    step=1,
    reason="round: not worse on memory",
    settings={},
    metrics={"num_rejected": 2.0, "num_rolled_back": 1.0, "num_adapted": 3.0},
    quarantined=((0, 10, 19), (1, 5, 5)),
)


def test_versions_are_counted_by_the_newest_even_if_an_older_one_is_served() -> None:
    older = replace(NEWEST, version=7, metrics={"num_rejected": 1.0}, quarantined=())

    counts = version_counts(
        [VersionInfo(NEWEST, False, False, 1), VersionInfo(older, True, True, 1)]
    )

    assert counts == {
        "published": 7,
        "rejected": 2,
        "rolled_back": 1,
        "adapted": 3,
        "quarantined": 11,
    }


def test_nothing_was_published_where_there_are_no_versions() -> None:
    assert not any(version_counts([]).values())
