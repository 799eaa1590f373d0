"""Runs timm's own model tests on our networks: `make timm-tests NAMES=...`, or this file with names.

The tests are those in the source archive of the installed timm version, fetched from the package index; nothing of
them is kept here. They come in two kinds: tests that pytest parametrises over all registered models, which ours join by
being registered first, and tests bound to certain names, ordinary functions that are called with ours. (Of the latter
those are left out that need what only some families have: a fixed image size, attention, a filter for checkpoints.)
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import gaeanet.models.registry
from gaeanet.models.registry import default_cfgs

ROOT = Path(__file__).parent.parent
LISTED_TESTS = 8
"""Test functions a model that pytest must select: fewer means that something is wrong with the registration."""

BOUND_TESTS: list[tuple[str, dict[str, Any]]] = [
    ("test_reset_classifier_keeps_pool", {}),
    ("test_features_only_grad_checkpointing_backward", {}),
    ("test_model_forward_intermediates_features", {"batch_size": 1}),
    ("test_model_forward_intermediates", {"batch_size": 1}),
    ("test_feature_getter_stage_ends_torchscript", {}),
    ("test_prune_intermediate_layers_params_used", {}),
    ("test_head_hidden_size", {"model_kwargs": {}}),
    ("test_features_only_feature_cls_class", {}),
    ("test_forward_after_prune_intermediate_layers", {}),
    ("test_prune_intermediate_layers_last_feature", {"stop_early_final": False}),
    ("test_prune_intermediate_layers_last_feature", {"stop_early_final": True}),
    ("test_prune_intermediate_layers_contract", {}),
    ("test_prune_to_stem_feature", {}),
    ("test_forward_intermediates_stop_early_final_norm", {"model_kwargs": {}}),
    ("test_model_init_weights_after_to_empty", {"kwargs": {}}),
]


def fetched_tests() -> Path:
    """timm's test_models.py, of the installed version."""
    version = timm.__version__
    folder = ROOT / "build" / "timm"
    tests = folder / f"timm-{version}" / "tests" / "test_models.py"
    if not tests.is_file():
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "timm", "--dest", str(folder)]
        done = subprocess.run([sys.executable, "-m", *command, f"timm=={version}"], capture_output=True, text=True)
        archive = folder / f"timm-{version}.tar.gz"
        if done.returncode or not archive.is_file():
            sys.exit(f"timm's tests are NOT run: its source archive cannot be fetched:\n{done.stderr[-500:]}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)
    return tests


def with_statistics(create_model: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Networks whose batch norms know the statistics of a batch of noise, as after the first steps of training.

    Without them the maps of an untrained network of 14 cells vanish in evaluation, to 1e-8: the absolute tolerance of
    `torch.allclose`, which then calls the means and the maxima of a map equal.
    """

    def create(*arguments: Any, **options: Any) -> nn.Module:
        network = create_model(*arguments, **options)
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None  # the plain mean over all batches: here, this one
        with torch.no_grad():
            network.train()(torch.randn(8, 3, 64, 64))
        return network

    return create


class Selection:
    """A pytest plugin that keeps the tests of certain models, and counts."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.selected: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if self._model(item) in self.names]
        self.selected.update(self._model(item) for item in kept)
        items[:] = kept

    @staticmethod
    def _model(item: pytest.Item) -> str:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        return str(parameters.get("model_name", "")).split(".")[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1


def main(names: list[str]) -> int:
    known = sorted({name.split(".")[0] for name in default_cfgs})
    names = names or known
    if unknown := set(names) - set(known):
        sys.exit(f"not registered by gaeanet: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    tests = fetched_tests()
    selection = Selection(names)
    begin = time.monotonic()
    pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", "--timeout=900", str(tests)], plugins=[selection])

    spec = importlib.util.spec_from_file_location("timm_test_models", tests)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made_plainly = module.create_model
    failed = []
    for name in names:
        for function, arguments in BOUND_TESTS:
            pooled = function == "test_reset_classifier_keeps_pool"
            module.create_model = with_statistics(made_plainly) if pooled else made_plainly
            try:
                getattr(module, function)(model_name=name, **arguments)
            except Exception as error:
                failed.append(f"{function}[{name}]: {type(error).__name__}: {error}")
    too_few = [name for name in names if selection.selected[name] < LISTED_TESTS]
    bound = len(names) * len(BOUND_TESTS)
    for line in failed + [f"{name}: only {selection.selected[name]} listed tests selected" for name in too_few]:
        print(f"FAILED {line}")
    print(
        f"timm {timm.__version__}, {len(names)} models: listed tests {selection.outcomes['passed']} passed, "
        f"{selection.outcomes['failed']} failed, {selection.outcomes['skipped']} skipped; bound tests "
        f"{bound - len(failed)} passed, {len(failed)} failed; {time.monotonic() - begin:.0f} s"
    )
    return bool(failed or too_few or selection.outcomes["failed"] or selection.outcomes["skipped"])


if __name__ == "__main__":
    assert gaeanet.models.registry  # registers the networks
    sys.exit(main(sys.argv[1:]))
