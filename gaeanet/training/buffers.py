"""The flat buffers of a learner: weights, gradients, momenta, moving average and batch-norm statistics.

On a GPU a step works on these; to everyone else the network has the parameters and buffers that it had, whose memory
they now share, and state dicts and checkpoints are as before (see `optim/flat.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gaeanet.optim.ema import WeightAverage
from gaeanet.optim.flat import Layout
from gaeanet.optim.groups import Group


class Buffers:
    """Moves a network's parameters and statistics, and its average's, into flat buffers.

    Args:
        stacked: Whether matrices of one shape are a parameter of their own for the optimizer, as Muon wants them.

    Attributes:
        gradients: All gradients in one buffer, which processes add up in one exchange.
        members: The network's parameters that learn.
        gradient_views: Of `gradients`, the gradient of each of `members`.
        parameters: For each group what its optimizer sees: few flat parameters, whose gradients are in `gradients`.
        statistics: The network's batch-norm statistics, one flat buffer.
    """

    def __init__(
        self, network: nn.Module, groups: Sequence[Group], average: WeightAverage | None, stacked: bool
    ) -> None:
        members = [[parameter for _, parameter in group.parameters] for group in groups]
        self.members = [parameter for group in members for parameter in group]
        self._names = [[name for name, _ in group.parameters] for group in groups]
        self._layouts = [Layout(group, stacked) for group in members]
        weights = [layout.gather(group) for layout, group in zip(self._layouts, members)]
        self.gradients = torch.cat([layout.zeros() for layout in self._layouts])
        self._gradients = self.gradients.split([layout.elements for layout in self._layouts])
        self.parameters = [
            list(self._flat_parameters(*parts)) for parts in zip(self._layouts, weights, self._gradients)
        ]
        self.gradient_views = [
            view for layout, buffer in zip(self._layouts, self._gradients) for view in layout.views(buffer)
        ]

        persistent = network.state_dict().keys()
        buffers = {name: buffer for name, buffer in network.named_buffers() if name in persistent}
        kinds = [
            [name for name, buffer in buffers.items() if buffer.is_floating_point()],
            [name for name, buffer in buffers.items() if not buffer.is_floating_point()],
        ]
        layouts = [Layout([buffers[name] for name in names]) for names in kinds if names]
        mine = [layout.gather([buffers[name] for name in names]) for layout, names in zip(layouts, kinds)]
        self.statistics = mine[:1]
        if average:
            theirs = dict(average.network.named_buffers()), dict(average.network.named_parameters())
            of_buffers = [
                (layout.gather([theirs[0][name] for name in names]), own)
                for layout, names, own in zip(layouts, kinds, mine)
            ]
            of_weights = [
                (layout.gather([theirs[1][name] for name in names]), own)
                for layout, names, own in zip(self._layouts, self._names, weights)
            ]
            average.follow([*of_weights, *of_buffers[:1]], of_buffers[1:])

    @staticmethod
    def _flat_parameters(layout: Layout, weights: Tensor, gradients: Tensor) -> Iterator[nn.Parameter]:
        for span in layout.spans:
            parameter = nn.Parameter(span.of(weights))
            parameter.grad = span.of(gradients)
            yield parameter

    def momenta(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Gives the optimizer of `parameters` momenta of zero; returns them by the names of the network's."""
        by_name: dict[str, Tensor] = {}
        for layout, flat, names in zip(self._layouts, self.parameters, self._names):
            buffer = layout.zeros()
            for span, parameter in zip(layout.spans, flat):
                optimizer.state[parameter]["momentum_buffer"] = span.of(buffer)
            by_name.update(zip(names, layout.views(buffer)))
        return by_name
