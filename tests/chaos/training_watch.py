"""Follows from outside what training publishes, so that it can be compared with the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from background import Background

Watermark = tuple[int, ...]
_PERIOD_S = 0.25


@dataclass(frozen=True)
class Version:
    """The part of a manifest that says what was learned."""

    number: int
    parent: int
    trained_through: Watermark
    step: int
    steps_per_500_events: int
    quarantined: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Version:
        """From a manifest as the service tells it."""
        return cls(
            number=manifest["version"],
            parent=manifest["parent"],
            trained_through=tuple(manifest["trained_through"]),
            step=manifest["step"],
            steps_per_500_events=manifest["settings"]["training"]["steps_per_500_events"],
            quarantined=tuple((s, first, last) for s, first, last in manifest["quarantined"]),
        )


class TrainingWatch(Background):
    """Asks for the versions at a pace until the block is left; keeps all that it ever saw.

    Attributes:
        versions: By number.
        served: When which watermark was served, in seconds of `time.monotonic()`.
    """

    def __init__(self, url: str) -> None:
        watch = threading.Thread(target=self._watch, name="training-watch")
        super().__init__([watch], wait_s=30.0)
        self.versions: dict[int, Version] = {}
        self.served: list[tuple[float, Watermark]] = []
        self._url = url

    @property
    def num_shards(self) -> int:
        """Shards of the log; 0 before the first answer."""
        return len(self.served[-1][1]) if self.served else 0

    def learned_s(self, offsets: Mapping[int, int]) -> float | None:
        """When a version that learned up to these offsets was first seen being served."""
        for seen_s, through in self.served:
            if all(through[shard] >= offset for shard, offset in offsets.items()):
                return seen_s
        return None

    def add(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Note these versions."""
        for manifest in manifests:
            version = Version.of(manifest)
            self.versions.setdefault(version.number, version)

    def _watch(self) -> None:
        with httpx.Client(base_url=self._url, timeout=5.0) as client:
            while not self._stopped.wait(_PERIOD_S):
                try:
                    answer = client.get("/v1/model/versions").raise_for_status().json()
                except (httpx.HTTPError, ValueError):
                    continue  # what it misses is in the next answer
                self.add([version["manifest"] for version in answer["versions"]])
                self.served.append((time.monotonic(), tuple(answer["trained_through"])))
