"""BERT that learns in the running system: tuned texts are served and outlive a killed worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live_system import LiveSystem, simulated_stream, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TUNED = """\
[text_tuning]
mode = "lora"
gather_steps = 1
refresh_steps = 4
cpu_share = 1.0
"""


def served_steps(system: LiveSystem) -> float:
    """Steps of BERT behind the version that is served."""
    return float(system.model()["head"]["metrics"].get("text_steps", 0.0))


def click_until(system: LiveSystem, num_steps: float) -> float:
    """Let the system learn until a version with that many steps of BERT is served."""
    items = [item.item_id for item in simulated_stream().items]
    number = 0

    def has_steps() -> bool:
        nonlocal number
        system.click(f"{num_steps}-{number}", *items[number % 60 : number % 60 + 60])
        number += 1
        return served_steps(system) >= num_steps

    wait_until(has_steps, 90.0, f"{num_steps} steps of BERT")
    return served_steps(system)


def test_tuned_texts_are_served_and_outlive_a_killed_worker(tmp_path: Path) -> None:
    system = LiveSystem(tmp_path, min_replicas=1, more_config=TUNED)
    try:
        system.up()
        system.ingest_simulated()
        system.wait_for_version(1)
        before = click_until(system, 5)

        os.kill(system.worker_pids("RayTrainWorker")[0], signal.SIGKILL)
        known = simulated_stream().items[3]
        system.request("PUT", "/v1/items", {"item_id": "brand-new", "text": known.text})
        similar = system.request("GET", f"/v1/items/{known.item_id}/similar?k=5")
        assert "brand-new" in {item["item_id"] for item in similar["items"]}
        offsets = system.click("visitor", "brand-new")["offsets"]
        system.wait_until_learned(offsets, timeout_s=120.0)
        # A tower that had started from the pretrained one again would stand at one step.
        assert served_steps(system) > before
    finally:
        system.down()
    assert system.processes() == []
