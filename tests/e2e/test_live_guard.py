"""The guard of the running system: a worse model does not get served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_system import LiveSystem, simulated_stream, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def versions(system: LiveSystem) -> list[Any]:
    """What is kept, newest first."""
    found: list[Any] = system.request("GET", "/v1/model/versions")["versions"]
    return found


def rejected(system: LiveSystem) -> list[Any]:
    """Manifests of what the guard did not let be served."""
    return [
        version["manifest"]
        for version in versions(system)
        if not version["is_head"] and "memory NDCG@10 fell" in version["manifest"]["reason"]
    ]


def net_rank(system: LiveSystem) -> float:
    """Mean rank of the next parts of series for someone who had the parts before."""
    items = [item.item_id for item in simulated_stream().items]
    ranks = []
    for start in range(0, 40, 4):
        body = {"history": [{"item_id": items[start]}], "rank_of": [items[start + 1]]}
        answer = system.request("POST", "/v1/recommend", body)
        ranks.append(answer["ranks"][items[start + 1]]["net"])
    return float(sum(ranks)) / len(ranks)


def test_a_reckless_learning_rate_is_not_served_and_learning_goes_on_when_it_is_mended(
    tmp_path: Path,
) -> None:
    training = "warmup_epochs = 40"  # else there is little to lose
    system = LiveSystem(tmp_path, min_replicas=1, training=training)
    reckless = replace(system, training=f"{training}\nlearning_rate = 1.0")
    items = [item.item_id for item in simulated_stream().items]
    try:
        system.up()
        system.ingest_simulated()
        system.wait_for_version(1)
        system.down()

        reckless.up()
        good = reckless.wait_for_version(1)["model_version"]
        before = net_rank(reckless)
        for number in range(10):  # one big round: many steps, all of them far too long
            reckless.click(f"victim-{number}", *items[number : number + 80])
        manifests = wait_until(lambda: rejected(reckless), 90.0, "a rejected version")
        assert reckless.model()["model_version"] == good
        # Not equal: the gate of the net has counted the clicks. Chance would be 60.
        assert net_rank(reckless) < 1.5 * before
        worst = manifests[0]
        assert worst["metrics"]["memory_ndcg_at_10"] < worst["metrics"]["memory_ndcg_at_10_head"]
        assert worst["metrics"]["num_rejected"] >= 1
        assert reckless.recommend("victim-0")["history_length"] == 80
        reckless.down()

        system.up()
        offsets = system.click("visitor", *items[:20])["offsets"]
        system.wait_until_learned(offsets, timeout_s=90.0)
        head = system.model()["head"]
        assert head["parent"] == good
        assert head["metrics"]["num_rejected"] >= 1
        assert head["quarantined"], "what the rejected version tried is learned after all"
    finally:
        system.down()
    assert system.processes() == []
