"""From nothing to a serving system on this machine, and back; whatever fails leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.config import Settings
from cluster.ingress import refusal
from cluster.interrupts import interrupts_held
from cluster.local_cluster import (
    ClusterError,
    ClusterRecord,
    attach,
    ingress_folder,
    start_ray,
    stop_ray,
    write_ingress,
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


def roll_replicas(settings: Settings, record: ClusterRecord) -> int:
    """Replace every replica of a running system by one with these settings; returns how many.

    Raises:
        ClusterError: If something else is set than when the system was started, or the new replicas
            do not come to serve; the old ones go on then.
    """
    path = Path(record.settings_path)
    running = Settings.model_validate_json(path.read_text(encoding="utf-8"))
    if fixed := settings_that_need_a_restart(running, settings):
        raise ClusterError(
            f"{', '.join(fixed)} differ from what this system was started with, and cannot change "
            "while it runs: `rheos down`, then `rheos up`"
        )
    # Serve starts HAProxy anew whenever a replica comes or goes, so the limits follow.
    write_ingress(settings.serving, record.mark)
    attach(record)
    from cluster.system import num_running_replicas, start_serving

    try:
        start_serving(settings)
    except (RuntimeError, TimeoutError) as error:
        raise ClusterError(f"the new replicas do not serve: {error}") from error
    path.write_text(settings.model_dump_json(indent=1), encoding="utf-8")
    return num_running_replicas()


def settings_that_need_a_restart(running: Settings, wanted: Settings) -> list[str]:
    """Settings that differ and that replicas cannot take up by themselves."""
    return [
        f"{section}.{key}"
        for section, table in wanted
        for key, value in table
        if value != getattr(getattr(running, section), key)
        and (section != "serving" or key in ("host", "port"))
    ]


def shut_down(settings: Settings) -> int:
    """Disconnect this process and end the cluster; returns how many processes were ended.

    A Ctrl-C meanwhile, from someone impatient, leaves nothing running either.
    """
    with interrupts_held():
        import ray

        if ray.is_initialized():
            ray.shutdown()  # first, or this process waits a minute for the cluster that is gone
        return stop_ray(settings.storage.data_dir)
