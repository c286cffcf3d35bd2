"""`rheos status` in words: one line for each part, with the few figures that people look for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.system import SystemStatus

_MAX_DEEDS = 3


@dataclass(frozen=True)
class PartLine:
    """How one part is. `state` is one word; `figures` the rest, or why there are none."""

    part: str
    state: str
    figures: str


def part_lines(
    status: SystemStatus, model: Mapping[str, Any] | None, now_ms: int
) -> list[PartLine]:
    """A line for every part, in the order in which an event passes them.

    Args:
        status: What the parts say; a part that does not answer is a text.
        model: The answer to `GET /v1/model`, if there was one.
        now_ms: Wall-clock time, to say how long ago the keeper did something.
    """
    ends = [
        said["next_offset"] if isinstance(said, Mapping) else 0
        for name, said in status.actors.items()
        if name.startswith("event_buffer_")
    ]
    describe: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "item_catalog": _catalog,
        "item_statistics": lambda said: _statistics(said, ends),
        "parameter_store": _store,
        "keeper": lambda said: _keeper(said, now_ms),
    }
    lines = [PartLine("serving", status.serving, _serving(status.replicas, model))]
    for name, said in status.actors.items():
        if not isinstance(said, Mapping):
            lines.append(PartLine(name, "silent", f"{said:.200}"))
            continue
        figures = describe.get(name, _shard)(said)
        if reason := said.get("reason"):
            figures = f"{reason}; {figures}"
        lines.append(PartLine(name, str(said.get("state", "ready")), figures))
    lines.append(_training(status.actors.get("keeper"), status.actors.get("parameter_store"), ends))
    return lines


def _serving(replicas: Mapping[str, int], model: Mapping[str, Any] | None) -> str:
    running = ", ".join(f"{number} {state.lower()}" for state, number in replicas.items())
    text = f"replicas: {running or 'none'}"
    if model is None:
        return f"{text}; HTTP does not answer"
    return f"{text}; version {model['model_version']}, staleness {_duration(model['staleness_ms'])}"


def _shard(said: Mapping[str, Any]) -> str:
    text = (
        f"{said['next_offset']:,} events of {said['num_users']:,} users, "
        f"{said['pending_events']:,} on the way to the disk, {_megabytes(said)}, "
        f"{said['counted_bytes'] / 1e6:.0f} MB of them bounded"
    )
    if cut := said["cut_bytes"]:
        text = f"{text}; a torn tail of {cut:,} bytes was cut"
    return f"{said['warning']}; {text}" if said["warning"] else text


def _catalog(said: Mapping[str, Any]) -> str:
    pending = said["num_pending"]
    reading = f"{pending:,} texts still to be read" if pending else "all texts read"
    return f"{said['num_items']:,} items, {reading}, {_megabytes(said)}"


def _statistics(said: Mapping[str, Any], ends: list[int]) -> str:
    text = f"{said['num_counted']:,} events counted, lag {_lag(ends, said['counters_through'])}"
    if unknown := said["num_unknown"]:
        text += f", {unknown:,} of unknown items"
    text += f", {_megabytes(said)}"
    return f"{said['last_error']}; {text}" if said["last_error"] else text


def _store(said: Mapping[str, Any]) -> str:
    kept = f"{said['num_versions']} kept, {_megabytes(said)}"
    head = said["head"]
    served = f"head is version {head['manifest']['version']}" if head else "no version yet"
    text = f"{served}, {kept}"
    return f"{said['warning']}; {text}" if said["warning"] else text


def _keeper(said: Mapping[str, Any], now_ms: int) -> str:
    text = f"watches {len(said['watches'])} actors"
    deeds = []
    for deed in said["deeds"][-_MAX_DEEDS:]:
        at_ms, _, what = deed.partition(" ")
        deeds.append(f"{_duration(now_ms - int(at_ms))} ago: {what}")
    return "; ".join([f"{text}, {len(said['deeds'])} deeds", *reversed(deeds)])


def _training(keeper: Any, store: Any, ends: list[int]) -> PartLine:
    if not isinstance(keeper, Mapping):
        return PartLine("training", "unknown", "the keeper does not answer")
    figures = [keeper["training_job_id"] or "no job"]
    if isinstance(store, Mapping) and store["head"]:
        figures.append(f"weights lag {_lag(ends, store['head']['manifest']['trained_through'])}")
    return PartLine("training", keeper["training_job"], ", ".join(figures))


def _lag(ends: list[int], through: Sequence[int]) -> str:
    missing = sum(max(0, end - 1 - mark) for end, mark in zip(ends, through, strict=True))
    return f"{missing:,} events"


def _megabytes(said: Mapping[str, Any]) -> str:
    return f"{said['memory_bytes'] / 1e6:.0f} MB"


def _duration(time_ms: float) -> str:
    if time_ms < 1_000:
        return f"{time_ms:.0f} ms"
    time_s = time_ms / 1_000
    if time_s < 120:
        return f"{time_s:.1f} s"
    return f"{time_s / 60:.0f} min"
