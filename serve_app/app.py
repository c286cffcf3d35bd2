"""The Serve application: `serve run serve_app.app:build_app`, `serve build`, `serve deploy`."""

# No `from __future__ import annotations` here: Serve looks at the parameter's type, and only a
# class, not its name, makes it convert and check the arguments.

from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.replica import RecommenderReplica
from serve_app.settings import AppSettings, ServingSettings


def build_app(settings: AppSettings) -> Application:
    """The application with these settings.

    Args:
        settings: From the `args` of a Serve config or from `key=value` pairs of `serve run`, for
            example `serving.min_replicas=1 num_shards=4`. An unknown key is an error.
    """
    deployment = serve.deployment(name="recommender", **deployment_options(settings.serving))
    return deployment(RecommenderReplica).bind(settings.model_dump(mode="json"))


def deployment_options(serving: ServingSettings) -> dict[str, Any]:
    """Options of the deployment.

    Serve lets more requests in than the replica works on: so it is the replica that refuses an
    excess, with a problem document, before Serve does it in plain text, and the requests of one
    address whose bodies come slowly leave room for others.
    """
    num_slow = serving.max_connections_per_address
    return {
        "ray_actor_options": {"num_cpus": serving.cpus_per_replica},
        "max_ongoing_requests": 2 * serving.max_ongoing_requests + num_slow,
        "max_queued_requests": serving.max_queued_requests,
        "autoscaling_config": {
            "min_replicas": serving.min_replicas,
            "max_replicas": serving.max_replicas,
            "target_ongoing_requests": serving.target_ongoing_requests,
            "upscale_delay_s": serving.upscale_delay_s,
            "downscale_delay_s": serving.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": max(2.0, serving.upscale_delay_s),
        },
        # JSON, because Serve logs a client's X-Request-ID as it comes.
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 3.0,
        "graceful_shutdown_timeout_s": serving.graceful_shutdown_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        # A new replica serves before an old one goes; else the only one there is would go first.
        "max_surge_percent": 20,
    }


app = build_app(AppSettings())
"""The application with every default: `serve build` takes an application and no builder."""
