"""A real group that speaks gloo: this process and another. A lone worker needs none."""

import multiprocessing
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import nn

from actors.worker_group import WorkerGroup
from recommender.windows import Windows

pytestmark = pytest.mark.actor

CPU = torch.device("cpu")


def windows(num_rows: int) -> Windows:
    """Rows that can be told apart by their one item."""
    items_BT = np.arange(num_rows, dtype=np.int32)[:, None]
    zeros_BT = np.zeros((num_rows, 1), np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.ones(num_rows, np.int32))


def rows_of(batch: Windows) -> list[int]:
    rows: list[int] = batch.items_BT[:, 0].tolist()
    return rows


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 1, bias=False)


def gradient(module: nn.Module, inputs: torch.Tensor) -> list[float]:
    module(inputs).mean().backward()
    [parameter] = module.parameters()
    assert parameter.grad is not None
    return parameter.grad[0].tolist()


def work(rank: int, port: int) -> dict[str, Any]:
    """One worker's life: join, share, learn, leave."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        group = WorkerGroup(rank, 2, CPU)
        num_made = 0

        def make() -> dict[str, Any]:
            nonlocal num_made
            num_made += 1
            return {"from": rank, "array": np.arange(3), "windows": windows(2)}

        shared = group.share(make)
        nothing = group.share(lambda: None)
        inputs = torch.tensor([[float(rank), 1.0]])
        return {
            "is_first": group.is_first,
            "shared_from": shared["from"],
            "array": shared["array"].tolist(),
            "windows": rows_of(shared["windows"]),
            "nothing": nothing,
            "num_made": num_made,
            "part": rows_of(group.part(windows(5))),
            "part_of_one": rows_of(group.part(windows(1))),
            "gradient": gradient(group.wrap(linear()), inputs),
        }
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def workers() -> Iterator[list[dict[str, Any]]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        second = pool.submit(work, 1, port)
        yield [work(0, port), second.result(30)]


def test_what_the_first_makes_all_get_and_nobody_else_makes_anything(
    workers: list[dict[str, Any]],
) -> None:
    assert [worker["is_first"] for worker in workers] == [True, False]
    assert [worker["shared_from"] for worker in workers] == [0, 0]
    assert [worker["num_made"] for worker in workers] == [1, 0]
    assert [worker["array"] for worker in workers] == [[0, 1, 2]] * 2
    assert [worker["windows"] for worker in workers] == [[0, 1]] * 2
    assert [worker["nothing"] for worker in workers] == [None, None]


def test_the_parts_of_a_batch_are_all_of_it_and_never_none(workers: list[dict[str, Any]]) -> None:
    assert [worker["part"] for worker in workers] == [[0, 2, 4], [1, 3]]
    assert [worker["part_of_one"] for worker in workers] == [[0], [0]]


def test_gradients_are_the_mean_over_the_group(workers: list[dict[str, Any]]) -> None:
    # The inputs are [0, 1] and [1, 1], so the gradients alone would be just these.
    assert [worker["gradient"] for worker in workers] == [[0.5, 1.0]] * 2


def test_a_worker_alone_does_everything_itself_without_a_group() -> None:
    group = WorkerGroup(0, 1, CPU)
    module, batch, made = linear(), windows(3), object()
    assert group.is_first
    assert group.share(lambda: made) is made
    assert group.part(batch) is batch
    assert group.wrap(module) is module
    assert gradient(group.wrap(module), torch.tensor([[1.0, 1.0]])) == [1.0, 1.0]
