"""Starts the actors on a Ray cluster that runs already.

`ray job submit -- python -m cluster.start_actors [--settings FILE]`, then
`serve deploy cluster/serve_config.yaml` and `ray job submit -- python -m cluster.train_job`. On a
laptop `rheos up` does all three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ray

from cluster.system import start_actors
from cluster.train_job import read_settings


def main() -> None:
    """Start every actor that is not there; they outlive this job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=Path, help="rheos.toml; the defaults if left out")
    settings = read_settings(parser.parse_args().settings)
    ray.init(namespace="rheos")
    start_actors(settings)
    print(f"{settings.buffer.num_shards} shards and the other actors are there")


if __name__ == "__main__":
    main()
