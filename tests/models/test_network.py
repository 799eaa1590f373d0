"""The network: batch norm, drop-path, activations, shapes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.build import build_network
from gaeanet.models.network import CellNetwork
from gaeanet.models.operations import DropPath, FactorizedReduce, drop_path


def tiny(**options: object) -> CellNetwork:
    torch.manual_seed(0)
    return CellNetwork(**{"num_classes": 5, "init_channels": 4, "layers": 3, **options})  # type: ignore[arg-type]


def test_field_report_5_drop_path_is_per_sample_scaled_and_off_in_evaluation() -> None:
    torch.manual_seed(0)
    ones = torch.ones(256, 1, 2, 2)
    dropped = drop_path(ones, torch.tensor(0.5))
    per_sample = dropped.flatten(1)
    assert all(sample.unique().numel() == 1 for sample in per_sample)
    assert dropped.unique().tolist() == [0.0, 2.0]
    assert abs(dropped.mean().item() - 1) < 0.25
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert drop_path(ones.to(dtype), torch.tensor(0.3)).dtype == dtype
    layer = DropPath(active=True).eval()
    assert layer(ones, torch.tensor(0.9)) is ones
    assert DropPath(active=False).train()(ones, torch.tensor(0.9)) is ones


def test_field_report_5_plain_identities_are_never_dropped() -> None:
    for genotype in ("gaea-imagenet", "pc-darts-imagenet", "nasnet-a"):
        network = tiny(drop_path_rate=0.5, genotype=genotype)
        for cell in network.cells:
            for op, layer in zip(cell._ops, cell._drop_paths):
                assert layer.active is (not isinstance(op, nn.Identity))
    assert not any(layer.active for cell in tiny(drop_path_rate=0.0).cells for layer in cell._drop_paths)


def test_field_report_5_evaluation_is_the_same_bit_for_bit() -> None:
    network = tiny(drop_path_rate=0.9, drop_rate=0.5).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), network(images))


def test_field_report_5_bf16_on_a_cpu() -> None:
    network = tiny(drop_path_rate=0.5, activation="swish", squeeze_excite=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(4, 3, 64, 64)).float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_field_report_6_batch_norm_keeps_a_running_mean() -> None:
    networks = [tiny(auxiliary=True, genotype=name, squeeze_excite=True) for name in ("gaea-imagenet", "amoebanet-a")]
    norms = [m for network in networks for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}
    norm = norms[0].train()
    for mean in (0.0, 10.0, -3.0):
        norm(torch.randn(64, norm.num_features, 4, 4) + mean)
    assert (norm.running_mean + 3).abs().min() > 0.03


def test_field_report_4_a_fresh_network_evaluates_with_nothing_set() -> None:
    assert tiny(drop_path_rate=0.3).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("activation", ["relu", "swish", "hswish"])
@pytest.mark.parametrize("squeeze_excite", [False, True])
def test_activations_and_squeeze_excite(activation: str, squeeze_excite: bool) -> None:
    network = tiny(activation=activation, squeeze_excite=squeeze_excite, auxiliary=True, layers=6).train()
    logits, tower = network(torch.randn(2, 3, 64, 64))
    (logits.sum() + tower.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    kinds = {type(m).__name__ for m in network.modules()}
    expected = {"relu": "ReLU", "swish": "SiLU", "hswish": "Hardswish"}[activation]
    assert expected in kinds


def test_dropout_is_before_the_classifier_and_in_training_only() -> None:
    network = tiny(drop_rate=0.99)
    features = torch.ones(64, network.num_features, 1, 1)
    assert (network.train().forward_head(features, pre_logits=True) == 0).float().mean() > 0.9
    assert (network.eval().forward_head(features, pre_logits=True) == 1).all()


@pytest.mark.parametrize("genotype", ["gaea-imagenet", "nasnet-a"])  # separable and dilated; 7x1 and 1x7
def test_with_an_initial_gamma_of_0_cells_are_their_skip_connections_and_pools(genotype: str) -> None:
    described = {"genotype": genotype, "init_channels": 8, "layers": 3, "num_classes": 10, "seed": 3}
    plain = build_network(Hyperparameters(**described))
    started = build_network(Hyperparameters(**described, initial_gamma=0.0))
    before, after = plain.state_dict(), started.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(re.fullmatch(r"cells\.\d\._ops\.\d+\.(op\.)?\d\.weight", name) for name in changed)
    for cell in started.cells:
        inner = torch.randn(4, cell.preprocess1.op[1].out_channels, 8, 8)
        for operation in cell._ops:
            learns = any(isinstance(module, nn.Conv2d) for module in operation.modules())
            silent = learns and not isinstance(operation, FactorizedReduce)
            assert (operation(inner).abs().max() == 0) == silent


@pytest.mark.parametrize("size", [32, 45])
def test_a_stem_of_stride_1_has_the_maps_of_an_image_twice_as_large_under_the_same_weights(size: int) -> None:
    published, fine = tiny().eval(), tiny(stem_stride=1).eval()
    fine.load_state_dict(published.state_dict())
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        # Stride 2 picks every other pixel of what stride 1 computes.
        torch.testing.assert_close(fine.stem0[0](image)[:, :, ::2, ::2], published.stem0[0](image))
        taps = fine.forward_intermediates(image, intermediates_only=True)
        larger = published.forward_intermediates(torch.randn(2, 3, 2 * size, 2 * size), intermediates_only=True)
    assert [tap.shape for tap in taps] == [tap.shape for tap in larger]
    reductions = [info["reduction"] for info in fine.feature_info]
    assert reductions == [info["reduction"] // 2 for info in published.feature_info]
    assert [tap.shape[2] for tap in taps] == [-(-size // reduction) for reduction in reductions]
