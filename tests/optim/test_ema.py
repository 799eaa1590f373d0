"""The moving average: what moves, what is copied, and the limits of the decay."""

import torch
from torch import nn

from gaeanet.optim.ema import WeightAverage, decay_at


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train_some(network: nn.Module, average: WeightAverage, steps: int, decay: float) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for t in range(steps):
        optimizer.zero_grad()
        network(torch.randn(8, 3) + 2).square().sum().backward()
        optimizer.step()
        average.update(torch.tensor(1 - decay_at(t, decay)))


def test_field_report_17_batch_norm_statistics_are_averaged_and_counters_copied() -> None:
    network = small_network().train()
    average = WeightAverage(network)
    start = average.network.state_dict()["1.running_mean"].clone()
    train_some(network, average, 20, 0.9)
    raw, mean = network.state_dict(), average.network.state_dict()
    assert not torch.equal(mean["1.running_mean"], start)
    assert not torch.equal(mean["1.running_mean"], raw["1.running_mean"])
    low, high = torch.minimum(start, raw["1.running_mean"]), torch.maximum(start, raw["1.running_mean"])
    assert ((mean["1.running_mean"] >= low - 0.5) & (mean["1.running_mean"] <= high + 0.5)).all()
    assert mean["1.num_batches_tracked"] == raw["1.num_batches_tracked"] == 20
    assert mean["1.num_batches_tracked"].dtype == torch.int64


def test_field_report_17_decay_zero_is_the_raw_network_bit_for_bit() -> None:
    network = small_network().train()
    average = WeightAverage(network)
    train_some(network, average, 5, 0.0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, average.network.state_dict()[name])


def test_the_average_equals_its_formula() -> None:
    network = small_network().train()
    average = WeightAverage(network)
    expected = network[0].weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001)
    for t in range(12):
        network(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        average.update(torch.tensor(1 - decay_at(t, 0.5)))
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * network[0].weight.detach()
    torch.testing.assert_close(average.network[0].weight, expected)
    assert decay_at(0, 0.5) == 0.1
    assert decay_at(10**6, 0.5) == 0.5


def test_the_network_in_training_is_never_touched() -> None:
    network = small_network().train()
    average = WeightAverage(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    average.update(torch.tensor(0.5))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
