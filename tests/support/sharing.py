"""What test_distributed.py runs in each of several processes: gradients and steps, counts of a validation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from steps import Trainee
from torch import nn

from gaeanet.config.experiment import load_experiment
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform
from gaeanet.data.loading.loader import training_batches, validation_batches
from gaeanet.data.sources.open import open_source
from gaeanet.evaluation.meter import Totals, evaluate
from gaeanet.runtime.processes import Processes


def keep_norms_in_evaluation(network: nn.Module) -> None:
    """Batch norm with fixed statistics, so that a gradient is a plain sum over images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
            module.training = False


def main(config: str, data: str, out: str) -> None:
    experiment = load_experiment(config, data=data)
    hp = experiment.hyperparameters
    processes = Processes()
    source = open_source(experiment)
    share = {"rank": processes.rank, "world_size": processes.world_size}

    state = Trainee(experiment, source, processes)
    keep_norms_in_evaluation(state.network)
    batches = training_batches(
        source, TrainingTransform(hp), global_batch=hp.global_batch_size, epochs=1, seed=hp.seed, **share
    )
    batch = next(iter(batches))
    state.step(batch.images, batch.labels, 0.0, 0.0)
    gradients = {name: p.grad for name, p in state.network.named_parameters()}

    flat = Trainee(experiment, source, processes, flat=True)
    keep_norms_in_evaluation(flat.network)
    for _ in range(2):
        flat.step(batch.images, batch.labels, 0.05, 0.0)
    weights = {f"flat {name}": p.detach().clone() for name, p in flat.network.named_parameters()}

    trained = Trainee(experiment, source, processes)
    for k, batch in enumerate(batches):
        if k == 2:
            break
        trained.step(batch.images, batch.labels, 0.01, 0.0)
    trained.learner.broadcast_statistics()
    average = trained.learner.average
    assert average is not None
    digest = hashlib.sha256()
    for buffer in [*trained.network.buffers(), *average.network.buffers()]:
        digest.update(buffer.numpy().tobytes())
    validation = validation_batches(source, ValidationTransform(hp.image_size), batch=4, **share)
    totals = Totals.of(processes.sum(evaluate([state.network], validation, processes.device)[0].sums))
    Path(out, f"{processes.world_size}-{processes.rank}.json").write_text(
        json.dumps({"totals": totals, "statistics": digest.hexdigest()})
    )
    if processes.is_first:
        torch.save(gradients | weights, Path(out, f"{processes.world_size}.pt"))
    processes.leave()
