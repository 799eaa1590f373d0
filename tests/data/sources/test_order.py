"""Law 1: which sample is read when is a pure function of (seed, epoch, step, rank, world size)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gaeanet.data.sources import order

seeds = st.integers(0, 2**63 - 1)


@given(st.integers(0, 2000), seeds, st.integers(0, 1000))
def test_an_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(order.epoch_order(count, seed, epoch)) == list(range(count))


def test_the_order_never_changes_between_versions() -> None:
    assert order.epoch_order(8, 0, 0).tolist() == [5, 7, 6, 3, 4, 1, 0, 2]
    assert order.epoch_order(8, 0, 1).tolist() != order.epoch_order(8, 0, 0).tolist()
    assert order.sample_seed(1, 2, 3) == 1130180864457277648


@given(st.integers(1, 64), st.integers(1, 9))
def test_shares_partition_the_batch(batch: int, world: int) -> None:
    parts = [list(range(batch))[order.shard_slice(batch, rank, world)] for rank in range(world)]
    assert sum(parts, []) == list(range(batch))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_positions_continue_from_anywhere(epochs: int, steps: int, data: st.DataObject) -> None:
    everything = list(order.positions(epochs, steps))
    assert everything == [(e, s) for e in range(epochs) for s in range(steps)]
    at = data.draw(st.integers(0, len(everything)))
    assert list(order.positions(epochs, steps, divmod(at, steps))) == everything[at:]


def test_field_report_44_no_two_samples_epochs_or_ranks_share_a_seed() -> None:
    samples = {order.sample_seed(s, e, i) for s in range(3) for e in range(10) for i in range(300)}
    steps = {order.step_seed(s, e, k, r) for s in range(3) for e in range(5) for k in range(20) for r in range(8)}
    assert len(samples) == 9000
    assert len(steps) == 2400
    assert not samples & steps


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(1, 6))
def test_a_batch_has_each_of_its_samples_as_often_as_asked(repeats: int, distinct: int, steps: int, world: int) -> None:
    batch = repeats * distinct
    whole = order.epoch_order(steps * batch, 3, 0)
    seen: list[int] = []
    for step in range(steps):
        samples, draws = order.batch_of(whole, step, batch, repeats)
        assert len(samples) == len(draws) == batch
        pairs = set(zip(samples.tolist(), draws.tolist()))
        assert pairs == {
            (s, d) for s in whole[step * distinct : (step + 1) * distinct].tolist() for d in range(repeats)
        }
        for rank in range(world):  # a share that is no larger than the distinct samples has none of them twice
            mine = samples[order.shard_slice(batch, rank, world)]
            assert len(mine) > distinct or len(set(mine.tolist())) == len(mine)
        seen += samples[:distinct].tolist()
    assert seen == whole[: steps * distinct].tolist()


def test_each_copy_has_draws_of_its_own_and_the_first_those_without_repeats() -> None:
    assert order.sample_seed(1, 2, 3, 0) == order.sample_seed(1, 2, 3)
    assert len({order.sample_seed(s, 0, k, d) for s in range(3) for k in range(100) for d in range(4)}) == 1200


@settings(max_examples=20)
@given(seeds)
def test_orders_look_random(seed: int) -> None:
    first, second = order.epoch_order(1000, seed, 0), order.epoch_order(1000, seed, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.2
