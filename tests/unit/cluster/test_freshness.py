import pytest

from cluster.freshness import FreshnessProbe


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probe(clock: Clock) -> FreshnessProbe:
    return FreshnessProbe(forget_after_s=10.0, clock=clock)


def test_a_batch_is_learned_once_every_replica_has_said_so(
    probe: FreshnessProbe, clock: Clock
) -> None:
    probe.answered("r1", [-1], [-1])
    probe.answered("r2", [-1], [-1])
    probe.acknowledged({"0": 9}, 10)
    clock.now_s += 1.0
    probe.answered("r1", [9], [9])
    assert (probe.num_open("learning"), probe.num_open("counters")) == (1, 1)
    clock.now_s += 1.0
    probe.answered("r2", [8], [9])
    assert (probe.num_open("learning"), probe.num_open("counters")) == (1, 0)
    clock.now_s += 3.0
    probe.answered("r2", [12], [12])
    assert probe.num_open("learning") == 0
    assert probe.percentiles("learning") == {"p50": 5.0, "p99": 5.0}
    assert probe.percentiles("counters") == {"p50": 2.0, "p99": 2.0}


def test_a_replica_that_no_longer_answers_is_not_waited_for(
    probe: FreshnessProbe, clock: Clock
) -> None:
    probe.answered("gone", [-1], [-1])
    probe.acknowledged({"0": 0}, 1)
    clock.now_s += 10.0
    probe.answered("r1", [0], [0])
    assert (probe.num_open("learning"), probe.num_replicas) == (1, 2)
    clock.now_s += 0.5
    probe.answered("r1", [0], [0])
    assert (probe.num_open("learning"), probe.num_replicas) == (0, 1)
    assert probe.percentiles("learning")["p50"] == 10.5


def test_each_shard_has_its_own_mark(probe: FreshnessProbe, clock: Clock) -> None:
    probe.acknowledged({"0": 4, "1": 7}, 10)
    clock.now_s += 1.0
    probe.answered("r1", [4, 6], [4, 7])
    assert (probe.num_open("learning"), probe.num_open("counters")) == (1, 0)


def test_before_the_first_version_nothing_is_learned(probe: FreshnessProbe, clock: Clock) -> None:
    probe.acknowledged({"1": 0}, 1)
    clock.now_s += 1.0
    probe.answered("r1", [], [])
    assert (probe.num_open("learning"), probe.num_open("counters")) == (1, 1)


def test_percentiles_are_over_events_and_not_over_batches(
    probe: FreshnessProbe, clock: Clock
) -> None:
    start_s = clock.now_s
    probe.acknowledged({"0": 0}, 1)
    probe.acknowledged({"0": 97}, 97)
    probe.acknowledged({"0": 99}, 2)
    for after_s, through in ((1.0, 0), (2.0, 97), (9.0, 99)):
        clock.now_s = start_s + after_s
        probe.answered("r1", [through], [through])
    assert probe.percentiles("learning") == {"p50": 2.0, "p99": 9.0}


def test_a_batch_over_two_shards_weighs_no_more_than_one_over_one(
    probe: FreshnessProbe, clock: Clock
) -> None:
    start_s = clock.now_s
    probe.acknowledged({"0": 0, "1": 0}, 10)
    probe.acknowledged({"0": 1}, 12)
    clock.now_s = start_s + 1.0
    probe.answered("r1", [0, 0], [0, 0])
    clock.now_s = start_s + 5.0
    probe.answered("r1", [1, 0], [1, 0])
    assert probe.percentiles("learning")["p50"] == 5.0


def test_the_last_batches_can_be_looked_at_alone(probe: FreshnessProbe, clock: Clock) -> None:
    for number, delay_s in enumerate((8.0, 1.0, 1.0)):
        probe.acknowledged({"0": number}, 1)
        clock.now_s += delay_s
        probe.answered("r1", [number], [number])
    assert probe.percentiles("learning")["p99"] == 8.0
    assert probe.percentiles("learning", last=2)["p99"] == 1.0


def test_without_a_batch_there_are_no_percentiles(probe: FreshnessProbe) -> None:
    assert probe.percentiles("learning") == {"p50": None, "p99": None}
    assert probe.num_open("learning") == 0
