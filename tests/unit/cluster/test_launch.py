"""Which settings a running system takes up, and which need a restart."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import Settings
from cluster.launch import settings_that_need_a_restart


@pytest.mark.parametrize(
    ("changed", "fixed"),
    [
        ({}, []),
        ({"serving": {"min_replicas": 3, "deadline_s": 1.0}}, []),
        ({"serving": {"max_k": 5, "port": 9_000}}, ["serving.port"]),
        ({"serving": {"host": "127.0.0.2"}}, ["serving.host"]),
        (
            {"buffer": {"num_shards": 3}, "model": {"window": 40}},
            ["buffer.num_shards", "model.window"],
        ),
    ],
)
def test_replicas_take_up_what_is_theirs_alone(changed: dict[str, Any], fixed: list[str]) -> None:
    assert settings_that_need_a_restart(Settings(), Settings.model_validate(changed)) == fixed


def test_settings_that_were_written_down_are_the_same_when_read() -> None:
    written = Settings.model_validate_json(Settings().model_dump_json())
    assert settings_that_need_a_restart(written, Settings()) == []
