"""The whole system on a Ray cluster this process is connected to: start it, look at it, stop it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.serve.schema import ApplicationStatusOverview

from actors.asking import ask
from actors.event_buffer import EventBuffer
from actors.item_catalog import ItemCatalog
from actors.item_statistics import ItemStatistics
from actors.keeper import JOB_PREFIX, KEEPER_FILE, ActorSpec, JobSpec, Keeper
from actors.messages import ActorsError
from actors.naming import (
    ITEM_CATALOG,
    ITEM_STATISTICS,
    KEEPER,
    PARAMETER_STORE,
    event_buffer_name,
    find_actor,
)
from actors.parameter_store import ParameterStore
from actors.storage_folder import found_installation
from cluster.config import Settings
from cluster.local_cluster import ClusterRecord
from recommender.text_encoder import TextEncoder
from serve_app.app import build_app
from serve_app.settings import AppSettings

APPLICATION = "rheos"
_CALL_TIMEOUT_S = 30.0


def actor_specs(settings: Settings) -> list[ActorSpec]:
    """All named actors but the keeper, in the order in which they are started."""
    shards = [
        ActorSpec(
            event_buffer_name(shard),
            EventBuffer,
            (shard, settings.storage, settings.buffer),
            {"window": settings.model.window},
        )
        for shard in range(settings.buffer.num_shards)
    ]
    return [
        *shards,
        ActorSpec(
            ITEM_CATALOG, ItemCatalog, (settings.storage, partial(TextEncoder, settings.text))
        ),
        ActorSpec(PARAMETER_STORE, ParameterStore, (settings.storage, settings.store)),
        ActorSpec(
            ITEM_STATISTICS,
            ItemStatistics,
            (settings.buffer.num_shards, settings.model.half_lives),
            {"filters": settings.filters},
        ),
    ]


def start_actors(settings: Settings) -> None:
    """Start every actor that is not there, and the keeper that watches them.

    They are told the installation that is here now: one that starts again and finds its folder
    emptied, or is on a node with another disk, must not begin afresh.

    Raises:
        CorruptStorage: If the storage folder is of another installation than the settings say.
    """
    storage = settings.storage
    installation = found_installation(storage.data_dir, storage.installation)
    storage = storage.model_copy(update={"installation": installation})
    specs = actor_specs(settings.model_copy(update={"storage": storage}))
    for spec in specs:
        spec.start()
    # What an earlier cluster's keeper had to do is over; the job is given with `start_training`.
    (settings.storage.data_dir / KEEPER_FILE).unlink(missing_ok=True)
    ActorSpec(KEEPER, Keeper, (specs, settings.storage.data_dir, settings.keeper)).start()


def start_serving(settings: Settings) -> None:
    """Deploy the HTTP service and wait until its replicas answer."""
    serving = settings.serving
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is not for our users
    # Before the first serve.run, or the address is not heeded.
    serve.start(http_options={"host": serving.host, "port": serving.port})
    serve.run(build_app(app_settings(settings)), name=APPLICATION, route_prefix="/")


def num_running_replicas() -> int:
    """Replicas that serve now."""
    return _replica_states(serve.status().applications.get(APPLICATION)).get("RUNNING", 0)


def app_settings(settings: Settings) -> AppSettings:
    """What the replicas need to know."""
    return AppSettings(
        serving=settings.serving,
        model=settings.model,
        blend=settings.blend,
        num_shards=settings.buffer.num_shards,
    )


def start_training(record: ClusterRecord) -> None:
    """Give the training job to the keeper: it submits it now, and again whenever it dies."""
    keeper = find_actor(KEEPER)
    ray.get(keeper.set_job.remote(training_job(record)), timeout=_CALL_TIMEOUT_S)


def training_job(record: ClusterRecord) -> JobSpec:
    """The job as `ray job submit` would take it."""
    return JobSpec(
        dashboard_url=record.dashboard_url,
        entrypoint=f"{sys.executable} -m cluster.train_job --settings {record.settings_path}",
    )


def stop_training(record: ClusterRecord) -> None:
    """Stop the training job and keep it stopped. What was published stays."""
    keeper = find_actor(KEEPER)
    ray.get(keeper.set_job.remote(None), timeout=_CALL_TIMEOUT_S)
    client = JobSubmissionClient(record.dashboard_url)
    for details in client.list_jobs():
        submission_id = details.submission_id or ""
        if submission_id.startswith(JOB_PREFIX) and details.status in (
            JobStatus.PENDING,
            JobStatus.RUNNING,
        ):
            client.stop_job(submission_id)


@dataclass(frozen=True)
class SystemStatus:
    """State of every part: by actor name what its `status()` says, or why it does not."""

    actors: dict[str, Any]
    replicas: dict[str, int]
    serving: str


def system_status(settings: Settings) -> SystemStatus:
    """Ask every part how it is; one that does not answer is part of the answer."""
    names = [spec.name for spec in actor_specs(settings)] + [KEEPER]
    states = asyncio.run(_statuses(names))
    application = serve.status().applications.get(APPLICATION)
    return SystemStatus(
        dict(zip(names, states, strict=True)),
        _replica_states(application),
        "NOT_STARTED" if application is None else str(application.status.value),
    )


def _replica_states(application: ApplicationStatusOverview | None) -> dict[str, int]:
    """How many replicas are in which state."""
    states: Counter[str] = Counter()
    if application is not None:
        for deployment in application.deployments.values():
            states.update({str(s): number for s, number in deployment.replica_states.items()})
    return dict(states)


async def _statuses(names: list[str]) -> list[Any]:
    async def one(name: str) -> Any:
        try:
            said = await ask(find_actor(name), "status", timeout_s=3.0)
        except (ActorsError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return asdict(said) if is_dataclass(said) and not isinstance(said, type) else said

    return list(await asyncio.gather(*(one(name) for name in names)))
