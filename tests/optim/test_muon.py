"""Muon: its steps are the rule's, written plainly, and what it leaves to SGD learns as under PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import NET
from torch import Tensor, nn

from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.build import build_network
from gaeanet.optim.muon import Muon, is_matrix, orthogonalised

sides = st.integers(1, 24)


@given(st.integers(1, 3), sides, sides, st.floats(-30, 30), st.integers(0, 99))
def test_directions_stay_and_their_lengths_become_alike(
    n: int, rows: int, columns: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, rows, columns)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    lengths = 0.02 + torch.rand(n, min(rows, columns), generator=generator, dtype=torch.float64)
    found = orthogonalised((10**scale * (left * lengths[:, None]) @ right).float()).double()
    lengthened = left.mT @ found @ right.mT
    about_one = lengthened.diagonal(dim1=1, dim2=2)
    assert 0.6 < float(about_one.min()) <= float(about_one.max()) < 1.25
    assert torch.allclose(lengthened, torch.diag_embed(about_one), atol=1e-4)


def test_no_gradient_is_no_step() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def learning(optimizer: str = "muon") -> tuple[nn.Module, list[tuple[str, nn.Parameter]]]:
    network = build_network(Hyperparameters(**{**NET, "do_SE": True, "optimizer": optimizer}))
    return network, list(network.named_parameters())


def give_gradients(parameters: Iterable[tuple[str, nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_what_is_a_matrix_and_what_is_not() -> None:
    network, parameters = learning()
    convolutions = {f"{name}.weight": m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    mixing = {name for name, c in convolutions.items() if c.groups == 1 < c.in_channels}
    assert {name for name, parameter in parameters if is_matrix(parameter)} == mixing
    assert {convolution.groups == 1 for convolution in convolutions.values()} == {True, False}


def test_five_steps_equal_the_rule_written_plainly() -> None:
    rate, momentum, decay = 0.1, 0.9, 0.01
    _, parameters = learning()
    expected = {name: parameter.detach().double().clone() for name, parameter in parameters}
    momenta = {name: torch.zeros_like(value) for name, value in expected.items()}
    groups = [{"params": [parameter for _, parameter in parameters], "weight_decay": decay}]
    optimizer = Muon(groups, lr=rate, momentum=momentum)

    def move(name: str, weight: Tensor, gradient: Tensor) -> None:
        m = momenta[name]
        if weight.ndim != 4 or weight.shape[1] == 1:
            m.mul_(momentum).add_(gradient + decay * weight)
            weight -= rate * m
            return
        m.mul_(momentum).add_(gradient)
        x = (gradient + momentum * m).reshape(len(weight), -1)
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        length = weight.norm()
        weight -= rate * length * x.reshape(weight.shape) / x.norm()
        weight *= length / weight.norm()

    for seed in range(5):
        give_gradients(parameters, seed)
        for name, parameter in parameters:
            assert parameter.grad is not None
            move(name, expected[name], parameter.grad.double())
        optimizer.step()
        for name, parameter in parameters:
            torch.testing.assert_close(parameter.detach().double(), expected[name], atol=2e-5, rtol=2e-5, msg=name)


def test_a_matrix_keeps_its_length_and_turns_by_the_rate() -> None:
    _, parameters = learning()
    optimizer = Muon([{"params": [parameter for _, parameter in parameters]}], lr=0.01, momentum=0.9)
    for seed in range(20):
        give_gradients(parameters, seed)
        before = [parameter.detach().clone() for _, parameter in parameters]
        optimizer.step()
        for (name, parameter), old in zip(parameters, before):
            if is_matrix(parameter):
                new = parameter.detach()
                assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-5), name
                assert 0 < float((new - old).norm() / old.norm()) < 0.0101, name


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_everything_else_learns_as_under_sgd(decay: float) -> None:
    found = []
    for rule in (Muon, torch.optim.SGD):
        _, parameters = learning()
        optimizer = rule([{"params": [p for _, p in parameters], "weight_decay": decay}], lr=0.1, momentum=0.9)
        for seed in range(3):
            give_gradients(parameters, seed)
            optimizer.step()
        found.append({name: parameter for name, parameter in parameters if not is_matrix(parameter)})
    for name, parameter in found[0].items():
        torch.testing.assert_close(parameter, found[1][name])


def test_parameters_without_a_gradient_stay() -> None:
    _, parameters = learning()
    before = [parameter.detach().clone() for _, parameter in parameters]
    give_gradients(parameters[::2], 0)
    Muon([{"params": [parameter for _, parameter in parameters]}], lr=0.1, momentum=0.9).step()
    for k, ((name, parameter), old) in enumerate(zip(parameters, before)):
        assert torch.equal(parameter, old) is (k % 2 == 1), name
