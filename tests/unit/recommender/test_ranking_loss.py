from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recommender.ranking_loss import (
    Candidates,
    Targets,
    competing_logits,
    draw_candidates,
    draw_targets,
    masked_softmax_loss,
)
from recommender.windows import PAD, Windows

CPU = torch.device("cpu")
ALL_TOUCHED = np.ones(8, np.bool_)
COUNTS_V = np.arange(8, dtype=np.float32)


def windows_of(*histories: list[int], num_columns: int = 4) -> Windows:
    items_BT = np.full((len(histories), num_columns), PAD, np.int32)
    for row, history in enumerate(histories):
        items_BT[row, : len(history)] = history
    zeros_BT = np.zeros(items_BT.shape, np.int8)
    return Windows(items_BT, zeros_BT, zeros_BT, np.array([len(h) for h in histories], np.int32))


def candidates_of(touched_V: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Candidates:
    return draw_candidates(
        touched_V, COUNTS_V, all_up_to=100, num_sampled=4, rng=np.random.default_rng(0)
    )


def targets_of(windows: Windows, touched_V: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Targets:
    return draw_targets(windows, candidates_of(touched_V), 8, np.random.default_rng(0), CPU)


def item_gradient(windows: Windows, touched: list[int]) -> Tensor:
    """How the loss of a user with query (1,) pushes each of 8 one-dimensional items."""
    touched_V = np.isin(np.arange(8), touched)
    keys_V1 = torch.zeros(8, 1, requires_grad=True)
    targets = targets_of(windows, touched_V)
    masked_softmax_loss(torch.ones(len(targets.items_N), 1), keys_V1, targets).backward()
    assert keys_V1.grad is not None
    return keys_V1.grad[:, 0]


def test_the_loss_is_the_cross_entropy_worked_by_hand() -> None:
    targets = targets_of(windows_of([2]), np.isin(np.arange(8), [1, 2, 5]))
    keys_V1 = torch.zeros(8, 1)
    keys_V1[[1, 2, 5], 0] = torch.tensor([0.0, 2.0, 1.0])
    loss = masked_softmax_loss(torch.ones(1, 1), keys_V1, targets)
    assert loss.item() == pytest.approx(-np.log(np.e**2 / (1 + np.e**2 + np.e)))


def test_an_anchor_adds_the_distance_to_its_distribution_worked_by_hand() -> None:
    targets = targets_of(windows_of([2]), np.isin(np.arange(8), [1, 2, 5]))
    keys_V1 = torch.zeros(8, 1)
    keys_V1[[1, 2, 5], 0] = torch.tensor([0.0, 2.0, 1.0])
    query_11 = torch.ones(1, 1)
    plain = masked_softmax_loss(query_11, keys_V1, targets).item()
    same = competing_logits(query_11, keys_V1, targets)
    anchored = replace(targets, anchor_NJ=same, anchor_weight=5.0)
    assert masked_softmax_loss(query_11, keys_V1, anchored).item() == pytest.approx(plain)
    # The anchor holds the three level: log(1/3) less the mean of the model's log shares.
    level = replace(targets, anchor_NJ=torch.where(same.isneginf(), same, 0.0), anchor_weight=5.0)
    logits = np.array([0.0, 2.0, 1.0])
    distance = np.log(1 / 3) - np.mean(logits - np.log(np.exp(logits).sum()))
    wanted = pytest.approx(plain + 5.0 * distance)
    assert masked_softmax_loss(query_11, keys_V1, level).item() == wanted


def test_a_rarely_drawn_candidate_stands_for_those_that_were_not_drawn() -> None:
    rare = Candidates(np.array([1, 2]), np.log(np.array([0.25, 0.5], np.float32)))
    targets = draw_targets(windows_of([2]), rare, 8, np.random.default_rng(0), CPU)
    loss = masked_softmax_loss(torch.ones(1, 1), torch.zeros(8, 1), targets)
    assert loss.item() == pytest.approx(np.log(1 + 4))  # the target counts once, item 1 four times


def test_items_nobody_touched_are_not_trained_down() -> None:
    gradient_V = item_gradient(windows_of([2]), touched=[1, 2, 5])
    assert gradient_V[[0, 3, 4, 6, 7]].abs().max() == 0
    assert gradient_V[[1, 5]].min() > 0 > gradient_V[2]


def test_items_the_user_had_are_not_trained_down() -> None:
    windows = windows_of([1, 2])
    drawn = (
        draw_targets(windows, candidates_of(ALL_TOUCHED), 8, np.random.default_rng(seed), CPU)
        for seed in range(20)
    )
    targets = next(targets for targets in drawn if targets.items_N.tolist() == [2])
    keys_V1 = torch.zeros(8, 1)
    loss = masked_softmax_loss(torch.ones(1, 1), keys_V1, targets)
    assert loss.item() == pytest.approx(np.log(7))


def test_an_item_had_before_can_be_the_target_again() -> None:
    gradient_V = item_gradient(windows_of([3, 3, 3, 3]), touched=[1, 3])
    assert gradient_V[3] < 0 < gradient_V[1]


def test_a_target_that_the_counters_do_not_know_yet_is_learned_all_the_same() -> None:
    gradient_V = item_gradient(windows_of([6]), touched=[1, 2])
    assert gradient_V[6] < 0


@pytest.mark.parametrize("touched", [[], [2]])
def test_the_very_first_event_gives_no_loss_and_no_nan(touched: list[int]) -> None:
    gradient_V = item_gradient(windows_of([2]), touched)
    assert torch.equal(gradient_V, torch.zeros(8))


def test_half_of_the_used_positions_are_trained_and_never_a_pad() -> None:
    windows = windows_of([1, 2, 3, 4], [5], [], [6, 7, 1])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = draw_targets(windows, candidates_of(ALL_TOUCHED), 8, rng, CPU)
        places = set(zip(targets.rows_N.tolist(), targets.positions_N.tolist(), strict=True))
        assert len(places) == len(targets.items_N) == 4
        assert (targets.items_N >= 0).all()
        assert all(position < windows.lengths_B[row] for row, position in places)


def test_windows_without_an_item_are_refused() -> None:
    with pytest.raises(ValueError, match="2 empty windows"):
        targets_of(windows_of([], []), ALL_TOUCHED)


def test_a_large_catalogue_is_sampled_without_repeats_from_touched_items() -> None:
    touched_V = np.arange(1_000) % 2 == 0
    drawn = draw_candidates(
        touched_V,
        np.ones(1_000, np.float32),
        all_up_to=100,
        num_sampled=64,
        rng=np.random.default_rng(0),
    )
    assert 50 < len(drawn.rows_C) <= 64
    assert touched_V[drawn.rows_C].all()
    assert len(np.unique(drawn.rows_C)) == len(drawn.rows_C)
    assert (drawn.log_inclusion_C < 0).all()


def test_the_sampled_sum_is_an_unbiased_estimate_of_the_whole_sum() -> None:
    rng = np.random.default_rng(0)
    weights_V = rng.exponential(size=300)
    counts_V = rng.exponential(size=300).astype(np.float32) ** 3
    estimates = []
    for _ in range(2_000):
        drawn = draw_candidates(
            np.ones(300, np.bool_), counts_V, all_up_to=10, num_sampled=40, rng=rng
        )
        estimates.append((weights_V[drawn.rows_C] / np.exp(drawn.log_inclusion_C)).sum())
    standard_error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(weights_V.sum(), abs=4 * standard_error)
    assert standard_error < 0.01 * weights_V.sum()


def test_a_sample_that_holds_everything_gives_the_whole_loss() -> None:
    windows = windows_of([1, 2, 3, 4], [5, 6])
    generator = torch.Generator().manual_seed(1)
    queries_N2 = torch.randn(3, 2, generator=generator)
    keys_V2 = torch.randn(8, 2, generator=generator)
    whole = targets_of(windows, ALL_TOUCHED)
    sample = draw_candidates(
        ALL_TOUCHED, COUNTS_V, all_up_to=2, num_sampled=5_000, rng=np.random.default_rng(0)
    )
    sampled = draw_targets(windows, sample, 8, np.random.default_rng(0), CPU)
    assert masked_softmax_loss(queries_N2, keys_V2, sampled).item() == pytest.approx(
        masked_softmax_loss(queries_N2, keys_V2, whole).item(), rel=1e-5
    )
