"""HAProxy's configuration as the installed Ray renders it, without a cluster."""

from __future__ import annotations

from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions


def render(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    http_port: int = 8_000,
    stats_port: int = 8_404,
    metrics_port: int = 9_101,
    replica_port: int | None = 30_000,
) -> Path:
    """Write `haproxy.cfg` for an application with one replica, or for none; returns its path."""
    path = folder / "haproxy.cfg"
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=http_port),
        socket_path=str(folder / "ha.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "m.sock"),
        stats_port=stats_port,
        metrics_port=metrics_port,
        has_received_routes=replica_port is not None,
    )
    backends = {}
    if replica_port is not None:
        backends["http-rheos"] = BackendConfig(
            name="http-rheos",
            path_prefix="/",
            app_name="rheos",
            servers=[ServerConfig(name="replica", host="127.0.0.1", port=replica_port)],
        )
    HAProxyApi(config, backends, str(path))._generate_config_file_internal()
    return path
