"""The training job: `ray job submit ... -- python -m cluster.train_job [--settings FILE]`.

Starts the Ray Train worker group that learns for ever. It needs the actors to be there (`rheos up`
starts them) and ends only when the job is stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.lessons import TrainingJobSettings
from actors.settings import LoopSettings
from actors.training_entry import train_worker
from cluster.config import Settings, load_settings
from recommender.implicit_factors import SolverMissing, require_solver

logger = logging.getLogger(__name__)


def main() -> None:
    """Read the settings, start the worker group, wait for its end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--settings",
        type=Path,
        help="rheos.toml, or the settings.json that `rheos up` writes; the defaults if left out",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = read_settings(arguments.settings)
    try:
        require_solver(settings.ials)
    except SolverMissing as error:
        sys.exit(f"rheos: {error}")  # before anything is started that would start again
    ray.init(namespace="rheos", log_to_driver=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job_settings(settings).model_dump(mode="json"),
        scaling_config=scaling(settings.loop, ray.cluster_resources().get("GPU", 0.0)),
        run_config=RunConfig(
            name="rheos",
            storage_path=str(settings.storage.data_dir / "train"),
            # Ray Train's default is to give up at the first failure.
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    logger.info("training ended metrics=%s", result.metrics)


def read_settings(path: Path | None) -> Settings:
    """Settings from TOML, or from the resolved JSON that a start wrote."""
    if path is not None and path.suffix == ".json":
        return Settings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    return load_settings(path)


def job_settings(settings: Settings) -> TrainingJobSettings:
    """The sections that the workers need."""
    return TrainingJobSettings(
        loop=settings.loop,
        buffer=settings.buffer,
        model=settings.model,
        training=settings.training,
        blend=settings.blend,
        ials=settings.ials,
        filters=settings.filters,
        guard=settings.guard,
        text=settings.text,
        text_tuning=settings.text_tuning,
    )


def scaling(loop: LoopSettings, num_gpus: float) -> ScalingConfig:
    """How many workers, and on what: GPUs if asked for, or if there is one for each.

    Raises:
        ValueError: If GPUs are asked for and the cluster has too few.
    """
    if loop.device == "gpu" and num_gpus < loop.num_workers:
        raise ValueError(
            f"loop.device is gpu and loop.num_workers is {loop.num_workers}, "
            f"but the cluster has {num_gpus:g} GPUs"
        )
    use_gpu = loop.device == "gpu" or (loop.device == "auto" and num_gpus >= loop.num_workers)
    resources = {"CPU": loop.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})
    return ScalingConfig(
        num_workers=loop.num_workers, use_gpu=use_gpu, resources_per_worker=resources
    )


if __name__ == "__main__":
    main()
