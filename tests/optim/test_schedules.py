"""Learning rate and drop-path rate: the published values at whole epochs, and laws in between."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaeanet.data.images.transforms import image_size
from gaeanet.optim.schedules import drop_path_rate, learning_rate


def published(e: int, E: int, scheduler: str, base: float, warmup: int) -> float:
    """RECIPE's formulas, an epoch at a time."""
    if e < warmup:
        return base * (e + 1) / warmup
    if scheduler == "cosine":
        return base * (1 + math.cos(math.pi * e / E)) / 2
    if scheduler == "linear":
        return base * (E - 5 - e) / (E - 5) if E - e > 5 else base * (E - e) / ((E - 5) * 5)
    return base * 0.97 ** math.floor((e + 1) / 2)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "efficientnet"])
@pytest.mark.parametrize("epochs", [11, 250, 300])
def test_whole_epochs_have_the_published_rates(scheduler: str, epochs: int) -> None:
    for e in range(epochs):
        rate = learning_rate(e, scheduler=scheduler, base=0.5, epochs=epochs, warmup_epochs=5)
        assert rate == pytest.approx(published(e, epochs, scheduler, 0.5, 5), rel=1e-12)


@given(
    st.sampled_from(["cosine", "linear", "efficientnet"]),
    st.integers(1, 400),
    st.integers(0, 6),
    st.integers(1, 50),
)
def test_every_step_is_positive_and_none_rises_after_warm_up(
    scheduler: str, epochs: int, warmup: int, steps: int
) -> None:
    moments = [k / steps for k in range(epochs * steps if epochs < 20 else 20 * steps)]
    rates = [learning_rate(m, scheduler=scheduler, base=0.5, epochs=epochs, warmup_epochs=warmup) for m in moments]
    assert all(0 < rate <= 0.5 for rate in rates)
    after = [rate for m, rate in zip(moments, rates) if m >= warmup - 1]
    assert all(later <= earlier + 1e-15 for earlier, later in zip(after, after[1:]))
    before = [rate for m, rate in zip(moments, rates) if m <= warmup - 1]
    assert all(later >= earlier for earlier, later in zip(before, before[1:]))


@given(st.sampled_from(["cosine", "linear"]), st.integers(2, 400), st.integers(10, 5000))
def test_last_step_is_next_to_zero(scheduler: str, epochs: int, steps: int) -> None:
    last = learning_rate(epochs - 1 / steps, scheduler=scheduler, base=1.0, epochs=epochs)
    lowest_epoch = learning_rate(epochs - 1, scheduler=scheduler, base=1.0, epochs=epochs)
    assert 0 < last <= lowest_epoch * 1.0001 / steps


def test_field_report_4_drop_path_grows_linearly() -> None:
    assert [drop_path_rate(e, final=0.3, epochs=4) for e in range(4)] == pytest.approx([0, 0.075, 0.15, 0.225])


@given(st.integers(32, 300), st.integers(32, 300), st.integers(1, 50))
def test_image_sizes_run_from_first_to_last_in_steps_of_16(first: int, last: int, epochs: int) -> None:
    sizes = [image_size(epoch, first=first, last=last, epochs=epochs) for epoch in range(epochs)]
    assert all(min(first, last) <= size <= max(first, last) for size in sizes)
    assert sizes == sorted(sizes, reverse=first > last)
    assert all(size % 16 == 0 or size in (first, last) for size in sizes)
    if first == last:
        assert set(sizes) == {first}
