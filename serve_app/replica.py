"""The Ray Serve deployment: FastAPI in the replica, no second hop."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from serve_app.live_state import LiveState
from serve_app.routes import build_api
from serve_app.service import Clients, RecommenderService
from serve_app.settings import AppSettings
from serve_app.telemetry import replica_name


@serve.ingress()
class RecommenderReplica:
    """One replica. Holds nothing that a restart could lose: all of it is followed from the actors.

    In Serve's throughput mode this runs on the replica's own event loop, beside the health checks:
    nothing here blocks, and ranking takes 1 to 3 ms.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """`settings` is an `AppSettings` as plain values."""
        app_settings = AppSettings.model_validate(settings)
        self.service = RecommenderService(
            LiveState(app_settings.model, app_settings.blend, app_settings.num_shards),
            connect(app_settings),
            app_settings.serving,
            replica=replica_name(),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor; so each replica's routes know their service."""
        return build_api(self.service)

    async def check_health(self) -> None:
        """Called by Serve every second; an error, three times in a row, replaces the replica."""
        self.service.check_health()


def connect(settings: AppSettings) -> Clients:
    """Clients of the running actors."""
    from actors.event_buffer_client import EventBufferClient
    from actors.item_catalog_client import ItemCatalogClient
    from actors.item_statistics_client import ItemStatisticsClient
    from actors.parameter_store_client import ParameterStoreClient

    timeout_s = settings.serving.actor_timeout_s
    return Clients(
        # Below the deadline, so that a client hears which shards took their part.
        buffer=EventBufferClient.connect(settings.num_shards, 0.75 * settings.serving.deadline_s),
        catalog=ItemCatalogClient.connect(settings.serving.items_deadline_s),
        statistics=ItemStatisticsClient.connect(timeout_s),
        store=ParameterStoreClient.connect(timeout_s),
    )
