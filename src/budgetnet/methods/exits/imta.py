"""Improved techniques for training adaptive networks (Li et al., ICCV 2019), in two phases.

In the first, gradient equilibrium keeps the gradients of the exits from adding up in the blocks that they share. In the
second, the network is frozen, and new linear classifiers learn: each is told what the one before it said (inline
collaboration), and all but the last learn from the logits of the frozen network's last exit (one for all).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.exits import ExitNetwork, State, mapped
from budgetnet.tasks import Output
from budgetnet.tasks.multi_exit import MultiExit


class _Rescale(torch.autograd.Function):
    """Identity, but that derivatives are multiplied by a factor: backwards, again and again, and forwards."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.clone()  # forward mode takes no view of the input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        rescaled: Tensor = ctx.factor * tangent
        return rescaled


def rescale(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    rescaled: Tensor = _Rescale.apply(x, factor)  # type: ignore[no-untyped-call]
    return rescaled


def equilibrated(network: ExitNetwork, images: Tensor) -> tuple[Tensor, ...]:
    """The network's logits, with gradient equilibrium.

    The gradient of block j, from 0, is 1/(K − j) times the sum of the gradients of the exits from j on; a classifier's
    own gradient is what it was. For this every feature map, of all scales, is rescaled before and after each exit.
    """
    exits = network.exits
    state = network.begin(images)
    found = []
    for number in range(exits):
        state = mapped(network.block(state, number), partial(rescale, factor=1 / (exits - number)))
        logits, state = network.classify(state, number)
        found.append(logits)
        state = mapped(state, partial(rescale, factor=exits - number - 1))
    return tuple(found)


def one_for_all_losses(
    losses: Tensor, logits: tuple[Tensor, ...], teacher: Tensor, gamma: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """Losses of samples at exits, (batch, exits), that learn from one teacher: the loss is the sum of the exits' means.

    The last one's is the cross-entropy, the others' (1 − γ) CE + γ T² KL(teacher/T ‖ exit/T), with the mean over
    classes in place of their sum, as the authors' code has it. losses: the cross-entropies, (batch, exits). logits: by
    exit, (batch, classes). teacher: (batch, classes); no gradient goes there.
    """
    targets = F.log_softmax(teacher.detach() / temperature, 1)
    divergences = [
        F.kl_div(F.log_softmax(each / temperature, 1), targets, reduction="none", log_target=True).mean(1)
        for each in logits[:-1]
    ]
    others = (1 - gamma) * losses[:, :-1] + gamma * temperature**2 * torch.stack(divergences, 1)
    return torch.cat([others, losses[:, -1:]], 1)


class OneForAll(MultiExit):
    """The task of a network with exits whose training losses are `one_for_all_losses`; evaluation is as it was.

    The targets of a training batch, (N, 1 + K), are the labels and, beside each, the teacher's logits of the image.
    teacher: images to logits (N, K).
    """

    def __init__(self, task: MultiExit, teacher: Callable[[Tensor], Tensor]) -> None:
        super().__init__(task.task, task.exits)
        self._teacher = teacher

    def taught(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self._teacher(images).float()
        return torch.cat([targets[:, None].to(logits.dtype), logits], 1)

    def labels(self, targets: Tensor) -> Tensor:
        return targets if targets.dim() == 1 else targets[:, 0].long()

    def exit_losses(self, output: Output, targets: Tensor) -> Tensor:
        assert isinstance(output, tuple)
        losses = super().exit_losses(output, self.labels(targets))
        return losses if targets.dim() == 1 else one_for_all_losses(losses, output, targets[:, 1:])

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        return self.exit_losses(output, targets).mean(0).sum()

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        return super().losses(output, self.labels(targets))

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        return super().sums(output, self.labels(targets))


class Listening(nn.Module):
    """A linear classifier that also reads what the exit before it said: (batch, features) to (batch, num_classes).

    first: there is no exit before it.
    """

    def __init__(self, features: int, num_classes: int, first: bool) -> None:
        super().__init__()
        self.exchange = None
        if not first:
            self.exchange = nn.Sequential(nn.Linear(num_classes, features), nn.BatchNorm1d(features), nn.ReLU())
        self.linear = nn.Linear(features if first else 2 * features, num_classes)

    def forward(self, features: Tensor, before: Tensor | None) -> Tensor:
        heard = features if self.exchange is None else torch.cat([features, self.exchange(before)], 1)
        logits: Tensor = self.linear(heard)
        return logits


class Collaborating(ExitNetwork):
    """A network whose classifiers read their features and what the classifier before them said, in both phases.

    Images go to a tuple of logits. In the second phase the network is frozen, and stays in eval mode, so that its
    running statistics do not move. In the first, forward is `equilibrated`, by the network's own classifiers; only
    forward: exits are priced, and left early, as they will be in the end.
    """

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.network = network
        linears: list[Any] = [classifier.linear for classifier in network.classifiers]
        self.classifiers = nn.ModuleList(
            Listening(linear.in_features, linear.out_features, first=number == 0).to(linear.weight)
            for number, linear in enumerate(linears)
        )
        self.freeze()

    def freeze(self, frozen: bool = True) -> Collaborating:
        """Begin the second phase; with False, the first."""
        self.frozen = frozen
        self.network.requires_grad_(not frozen)
        self.classifiers.requires_grad_(frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Collaborating:
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images) if self.frozen else equilibrated(self.network, images)

    def begin(self, images: Tensor) -> State:
        """[the network's state, what the last classifier said]."""
        return [self.network.begin(images), None]

    def block(self, state: State, number: int) -> State:
        return [self.network.block(state[0], number), state[1]]

    def needed(self, state: State, number: int) -> State:
        return [self.network.needed(state[0], number), state[1]]

    def feature(self, state: State) -> Tensor:
        return self.network.feature(state[0])

    def classify(self, state: State, number: int) -> tuple[Tensor, State]:
        frozen: Any = self.network.classifiers[number]
        logits = self.classifiers[number](frozen.features(self.feature(state)), state[1])
        return logits, [state[0], logits]

    def exit_after(self, images: Tensor, number: int) -> Tensor:
        """An exit reads what all exits before it said."""
        stages = self.lazily(images)
        for _ in range(number):
            next(stages)
        return next(stages)

    def teacher(self, images: Tensor) -> Tensor:
        """Logits of the frozen network's last exit, (batch, num_classes)."""
        with torch.no_grad():
            return self.network(images)[-1]  # type: ignore[no-any-return]
