"""From nothing to a serving system on this machine, and back; whatever fails leaves nothing."""

from __future__ import annotations

from collections.abc import Callable

from cluster.config import Settings
from cluster.ingress import refusal
from cluster.local_cluster import (
    ClusterError,
    ClusterRecord,
    attach,
    ingress_folder,
    start_ray,
    stop_ray,
)
from recommender.implicit_factors import require_solver


def launch(settings: Settings, *, train: bool, say: Callable[[str], object]) -> ClusterRecord:
    """Start Ray, the actors, serving and (if `train`) the training job.

    Args:
        settings: All of them.
        train: Whether to submit the training job.
        say: Told what is being started.

    Raises:
        SolverMissing: If iALS is switched on and `implicit` is not installed.
        ClusterError: If the machine lacks what it needs, or the ingress cannot be made safe.
    """
    require_solver(settings.ials)
    say("starting Ray ...")
    record = start_ray(settings)
    try:
        attach(record)
        # Ray reads its environment when it is first imported, so not before `attach`.
        from cluster.system import start_actors, start_serving, start_training

        say("starting the actors ...")
        start_actors(settings)
        say("starting the replicas ...")
        start_serving(settings)
        if train:
            say("submitting the training job ...")
            start_training(record)
    except BaseException as error:
        reason = refusal(ingress_folder(record.mark))
        shut_down(settings)
        if reason is not None:
            raise ClusterError(reason) from error
        raise
    return record


def shut_down(settings: Settings) -> int:
    """Disconnect this process and end the cluster; returns how many processes were ended."""
    import ray

    if ray.is_initialized():
        ray.shutdown()  # first, or this process waits a minute for the cluster that is gone
    return stop_ray(settings.storage.data_dir)
