from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from recommender.adversarial import Adversary, adversary_of
from recommender.model import Recommender
from recommender.settings import ModelSettings, TrainingSettings
from recommender.training import Learner
from recommender.windows import Windows

MODEL = ModelSettings(dim=8, num_layers=1, intermediate=16, window=5)


def quadratic(items_VH: torch.Tensor) -> torch.Tensor:
    """Only the first row matters."""
    return items_VH[0].square().sum()


def test_the_shift_goes_up_the_loss_and_has_its_size() -> None:
    items_VH = torch.tensor([[3.0, 4.0], [1.0, 1.0]], requires_grad=True)
    shift_VH = Adversary(size=0.5, weight=1.0).shift(quadratic(items_VH), items_VH)
    torch.testing.assert_close(shift_VH, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    assert not shift_VH.requires_grad


def test_the_loss_is_the_mean_of_plain_and_shifted() -> None:
    items_VH = torch.tensor([[3.0, 4.0]], requires_grad=True)
    loss = Adversary(size=1.0, weight=3.0).loss(quadratic, items_VH)
    assert loss.item() == pytest.approx((25.0 + 3.0 * 36.0) / 4.0)
    loss.backward()
    assert items_VH.grad is not None
    expected = (2 * torch.tensor([[3.0, 4.0]]) + 3 * 2 * torch.tensor([[3.6, 4.8]])) / 4
    torch.testing.assert_close(items_VH.grad, expected)


def test_it_is_off_by_default_and_with_no_weight() -> None:
    assert adversary_of(TrainingSettings()) is None
    assert adversary_of(TrainingSettings(adversarial_size=0.1, adversarial_weight=0.0)) is None
    assert adversary_of(TrainingSettings(adversarial_size=0.1)) == Adversary(0.1, 1.0)


def steps_of(size: float, *, parallel: bool = False) -> list[float]:
    texts_VD = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    items_BT = np.random.default_rng(2).integers(0, 40, (8, 6)).astype(np.int32)
    zeros_BT = np.zeros((8, 6), np.int8)
    learner = Learner(
        Recommender(MODEL, texts_VD, seed=3),
        TrainingSettings(adversarial_size=size),
        wrap=DistributedDataParallel if parallel else None,
    )
    windows = Windows(items_BT, zeros_BT, zeros_BT, np.full(8, 6, np.int32))
    counts_MV, touched_V = np.ones((4, 40), np.float32), np.ones(40, np.bool_)
    return [learner.step(windows, counts_MV, touched_V) for _ in range(5)]


def test_the_setting_reaches_the_steps() -> None:
    assert steps_of(0.5) != steps_of(0.0)


def test_it_works_the_same_on_several_workers(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        assert steps_of(0.5, parallel=True) == pytest.approx(steps_of(0.5), abs=1e-6)
    finally:
        distributed.destroy_process_group()
