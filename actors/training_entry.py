"""Where the workers of the training group begin.

The job's driver and Ray Train's controller import this module too. Neither needs the model, whose
imports take each of them seconds, and after a failure they start one after the other.
"""

from __future__ import annotations

from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of each Ray Train worker; returns only when the job is stopped."""
    from actors.training_loop import run_worker

    run_worker(config)
