"""Any image size from 32 up, any number of layers, in training and evaluation, tower included."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaeanet.cells.zoo import ZOO
from gaeanet.models.network import AuxiliaryHead, CellNetwork
from gaeanet.models.operations import FactorizedReduce


def network(**options: object) -> CellNetwork:
    torch.manual_seed(0)
    return CellNetwork(**{"num_classes": 3, "init_channels": 2, "layers": 3, **options})  # type: ignore[arg-type]


def test_field_report_2_every_size_works() -> None:
    built = network().eval()
    with torch.no_grad():
        for size in [*range(32, 70), *range(199, 261), 299, 331]:
            assert built(torch.zeros(1, 3, size, size)).shape == (1, 3)


STEMS: dict[str, tuple[dict[str, Any], int]] = {
    "imagenet": ({}, 32),
    "imagenet of stride 1": ({"stem_stride": 1}, 16),
    "cifar": ({"stem": "cifar"}, 4),
}
"""Each with the times by which its network's last map is smaller than the image."""


@settings(max_examples=40)
@given(st.integers(32, 160), st.integers(32, 160), st.sampled_from(sorted(ZOO)), st.sampled_from(sorted(STEMS)))
def test_field_report_2_odd_and_oblong_maps_halve_upwards(height: int, width: int, genotype: str, stem: str) -> None:
    options, times = STEMS[stem]
    built = network(genotype=genotype, **options).eval()
    with torch.no_grad():
        features = built.forward_features(torch.zeros(1, 3, height, width))
    assert features.shape[2:] == (-(-height // times), -(-width // times))


def test_factorized_reduce_on_even_maps_is_the_original() -> None:
    torch.manual_seed(0)
    reduce = FactorizedReduce(4, 6).eval()
    x = torch.randn(2, 4, 12, 10)
    active = torch.relu(x)
    first = torch.nn.functional.conv2d(active, reduce.conv_1.weight, stride=2)
    second = torch.nn.functional.conv2d(active[:, :, 1:, 1:], reduce.conv_2.weight, stride=2)
    torch.testing.assert_close(reduce(x), reduce.bn(torch.cat([first, second], dim=1)), atol=1e-6, rtol=1e-6)


def test_factorized_reduce_on_odd_maps_sees_every_pixel() -> None:
    reduce = FactorizedReduce(1, 2).eval()
    torch.nn.init.ones_(reduce.conv_1.weight)
    torch.nn.init.ones_(reduce.conv_2.weight)
    x = torch.rand(1, 1, 7, 5) + 0.1
    first, second = (reduce(x) * math.sqrt(1 + reduce.bn.eps)).unbind(1)
    torch.testing.assert_close(first, x[:, 0, ::2, ::2])
    beyond = torch.zeros(1, 4, 3)
    beyond[:, :3, :2] = x[:, 0, 1::2, 1::2]
    torch.testing.assert_close(second, beyond)


def test_few_channels_do_not_write_beyond_their_memory() -> None:
    """oneDNN's strided 1x1 convolution does on AVX2; glibc's checking allocator ends the process then."""
    check = next(iter(sorted(Path("/").glob("usr/lib/*/libc_malloc_debug.so.0"))), None)
    if check is None:
        pytest.skip("no libc_malloc_debug.so.0 here")
    code = (
        "import torch; from gaeanet.models.network import CellNetwork; torch.manual_seed(0)\n"
        "net = CellNetwork(3, init_channels=4, layers=3, activation='swish', auxiliary=True)\n"
        "net.to(memory_format=torch.channels_last)\n"
        "for size in (32, 40, 75):\n"
        "    x = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)\n"
        "    for _ in range(4): sum(out.sum() for out in net(x)).backward()"
    )
    environment = {**os.environ, "MALLOC_CHECK_": "3", "LD_PRELOAD": str(check), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-500:]


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_field_report_3_the_tower_fits_every_size_and_depth(layers: int, stem: str) -> None:
    built = network(layers=layers, auxiliary=True, stem=stem).train()
    sizes = range(32, 321, 32) if layers == 3 and stem == "imagenet" else (32, 75, 96)
    for size in sizes:
        logits, tower = built(torch.randn(2, 3, size, size))
        assert logits.shape == tower.shape == (2, 3)


@pytest.mark.parametrize(("stride", "sizes"), [(2, (7, 8)), (3, (8, 9, 10))])
def test_field_report_3_the_tower_is_the_original_where_that_works(stride: int, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = AuxiliaryHead(6, 4, torch.nn.ReLU, stride, second_norm=True).eval()
    pool = torch.nn.AvgPool2d(5, stride=stride, padding=0, count_include_pad=False)
    for size in sizes:
        x = torch.randn(2, 6, size, size)
        original = head.classifier(head.features[2:](pool(torch.relu(x))).flatten(1))
        torch.testing.assert_close(head(x), original, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 4, 8, 30])
def test_any_depth(layers: int) -> None:
    built = network(layers=layers, squeeze_excite=True).eval()
    with torch.no_grad():
        assert built(torch.zeros(1, 3, 33, 47)).shape == (1, 3)
        taps = built.forward_intermediates(torch.zeros(1, 3, 64, 64), intermediates_only=True)
    assert [tap.shape[1] for tap in taps] == [entry["num_chs"] for entry in built.feature_info]


def test_the_head_reads_the_whole_map() -> None:
    built = network().eval()
    features = torch.zeros(1, built.num_features, 3, 3, requires_grad=True)
    built.forward_head(features).sum().backward()
    assert (features.grad != 0).all()


def test_a_second_norm_is_a_named_option() -> None:
    names = set(network(auxiliary=True).state_dict()) - set(
        network(auxiliary=True, auxiliary_second_norm=False).state_dict()
    )
    assert {name.rsplit(".", 1)[0] for name in names} == {"auxiliary_head.features.6"}
