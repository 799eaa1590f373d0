"""Starting from a trained network: what is loaded, what starts anew, what stays as it is, who learns how fast.

`read_start` needs no torch, so that a checkpoint that does not fit is refused before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gaeanet.artifacts.find import Trained, find
from gaeanet.artifacts.lineage import Lineage, parent_of
from gaeanet.config.experiment import Hyperparameters
from gaeanet.config.network import Network
from gaeanet.data.sources.catalog import imagenet_wnids
from gaeanet.errors import RequestError
from gaeanet.runtime.files import expanded

if TYPE_CHECKING:
    from torch import Tensor

    from gaeanet.models.network import CellNetwork

_ARCHITECTURE = ("init_channels", "layers", "activation", "do_SE", "stem")
_HEADS = ("classifier.", "auxiliary_head.classifier.")
_TOWER = "auxiliary_head."


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run starts from, checked against it.

    Attributes:
        kind: Which of its weights, `raw` or `ema`.
        new_head: Whether the classifiers start anew.
        why: Why they do, or why they need not, as text.
    """

    trained: Trained
    kind: str
    new_head: bool
    why: str

    @property
    def parent(self) -> Lineage:
        """What the run's checkpoints record of this one."""
        digest = self.trained.digests[self.kind][1] if self.kind in self.trained.digests else None
        return parent_of(self.trained.path, self.kind, digest, self.trained.state)

    def weights_for(self, network: CellNetwork) -> tuple[dict[str, Tensor], list[str]]:
        """The state dict to load into `network`, and messages about it, one sentence each.

        Raises:
            RequestError: Anything but the heads differs in name or shape.
        """
        expected, given = network.state_dict(), self.trained.tensors(self.kind)
        anew = {name for name in expected if name.startswith(_HEADS) and self.new_head}
        tower_is_new = not any(name.startswith(_TOWER) for name in given)
        if tower_is_new:
            anew |= {name for name in expected if name.startswith(_TOWER)}
        tower_ends = network.auxiliary_head is None
        for name in sorted(given.keys() | expected.keys()):
            if name in anew or (tower_ends and name.startswith(_TOWER)):
                continue
            if name not in given or name not in expected:
                fault = f"lacks {name}" if name not in given else f"has {name}, which this network lacks"
            elif given[name].shape != expected[name].shape:
                fault = f"has {name} of shape {list(given[name].shape)}, this network's is {list(expected[name].shape)}"
            else:
                continue
            raise RequestError(f"hyperparameters.init_checkpoint: {self.trained.path} {fault}")
        taken = {name: value for name, value in given.items() if name in expected and name not in anew}
        messages = [f"starts from {self.trained.path}, {self.kind} weights ({self.why})"]
        if anew:
            messages.append(f"starts anew: {', '.join(sorted(anew))}; everything else is loaded")
        if tower_ends and not tower_is_new:
            messages.append("the checkpoint's auxiliary tower is left out")
        return {**expected, **taken}, messages


def read_start(hp: Hyperparameters, classes: Sequence[str]) -> Start | None:
    """The checkpoint that `init_checkpoint` names, checked against the run's network and classes.

    Args:
        classes: Of the run's data.

    Raises:
        RequestError: It cannot be used, is of another network, or knows as many but other classes.
    """
    if hp.init_checkpoint is None:
        if hp.init_weights is not None or hp.new_head:
            raise RequestError("hyperparameters.init_weights and new_head go with init_checkpoint, which is null")
        return None
    trained = find(expanded(hp.init_checkpoint))
    theirs = trained.hyperparameters
    for key in _ARCHITECTURE:
        here, there = getattr(hp, key), getattr(theirs, key)
        if here != there:
            stride = " --set hyperparameters.stem_stride=2" if there == "cifar" and hp.stem_stride != 2 else ""
            raise RequestError(
                f"hyperparameters.{key} is {here!r}, but {hp.init_checkpoint} has {there!r}: "
                f"--set hyperparameters.{key}={_yaml(there)}{stride}"
            )
    if theirs.cell != hp.cell:
        raise RequestError(
            f"hyperparameters.genotype is the cell {hp.cell.fingerprint}, but {hp.init_checkpoint} has "
            f"{theirs.cell.fingerprint}: --set hyperparameters.genotype={_cell_name(theirs)}"
        )
    kind = trained.kind(hp.init_weights)
    known = trained.classes
    if known is None and theirs.num_classes == len(classes) == 1000:
        known = imagenet_wnids()
    if theirs.num_classes != hp.num_classes:
        return Start(trained, kind, True, f"{theirs.num_classes} classes there, {hp.num_classes} here")
    if hp.new_head:
        return Start(trained, kind, True, "new_head is true")
    if known is None or list(known) != list(classes):
        foreign = sorted(set(classes) - set(known or ()))
        what = "no class table" if known is None else "as many classes, but others or in another order"
        example = f" (it lacks {foreign[0]})" if known and foreign else ""
        raise RequestError(
            f"hyperparameters.init_checkpoint: {hp.init_checkpoint} has {what}{example}, so its classifier would "
            "be wrong: --set hyperparameters.new_head=true replaces it"
        )
    return Start(trained, kind, False, "the same classes: the classifier too")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell_name(network: Network) -> str:
    from gaeanet.cells.zoo import name_of

    return name_of(network.cell) or f'"{network.cell.to_text()}"'
