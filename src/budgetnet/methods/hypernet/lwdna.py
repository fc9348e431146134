"""LW-DNA: a widened network, cut back to its budget at initialisation by the gradients of its latent vectors.

Li et al., "The Heterogeneity Hypothesis: Finding Layer-Wise Differentiated Network Architectures" (CVPR 2021).
"""

from __future__ import annotations

import torch
from torch import nn

from budgetnet.errors import UsageError
from budgetnet.methods.hypernet import criteria
from budgetnet.methods.hypernet.criteria import Scores
from budgetnet.methods.hypernet.hypernetwork import Hypernetwork, generation_flops
from budgetnet.methods.hypernet.options import Selection
from budgetnet.methods.hypernet.shrinking import floors_by_share
from budgetnet.methods.hypernet.widened import Selected, Widened
from budgetnet.methods.method import Images, Training
from budgetnet.methods.options import Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan
from budgetnet.optim.sgd import adam


class LWDNA(Widened):
    """Before the first step, a few batches are trained on with every weight made from latents. Then the channels whose
    latents have the largest gradients stay, as many as the budget allows, and are trained as any network is.
    """

    def __init__(self, optim: Optimization, method: Selection) -> None:
        super().__init__(optim)
        self.options = method

    def start(self, training: Training) -> list[Phase]:
        """The full backbone becomes the wide network. Raises UsageError for a budget that no narrowed one meets."""
        options = self.options
        if options.batches > training.steps_per_epoch:
            raise UsageError(f"method.batches={options.batches}: an epoch has only {training.steps_per_epoch}")
        self.widen(training, options.multiplier)
        self.must_narrow(floors_by_share(self.graph, options.rho, options.tau))
        return [Phase("search", None, self.optim.lr), self.optim.phase("train", training.epochs, final=True)]

    @property
    def batch_size(self) -> int:
        """Images of a batch of the search, which the first process does: its own of a step."""
        return self.training.batch_size // self.training.processes.count

    def images(self, epochs: int) -> int:
        return 0 if epochs else self.options.batches * self.batch_size

    def plan(self, epochs: int, batch: Images | None) -> Selected | None:
        """Who stays, before the first step. This process's network gets the weights that were made for all channels."""
        if epochs:
            return None
        assert batch is not None
        hypernetwork = Hypernetwork(self.graph, self.options.embedding, self.training.seed).to(batch[0])
        scores = self.scores(hypernetwork, batch)
        hypernetwork.write(self.net)
        return self.select(scores)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Book the search, of the wide network and its weights, and narrow."""
        batches, training = self.options.batches, self.training
        training.ledger.add(batches * self.batch_size, training.pricing.flops)
        training.ledger.add(batches, generation_flops(self.graph, self.options.embedding))
        super().apply(plan, batch)

    def scores(self, hypernetwork: Hypernetwork, batch: Images) -> Scores:
        """What the search's batches leave behind; the controls are trained on them too."""
        number, optim = self.options.batches, self.optim
        images, targets = (part[: number * self.batch_size].chunk(number) for part in batch)
        trained = nn.ModuleList([self.net, hypernetwork])
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "adam":  # without batch norms steps of SGD at Adam's rate can be far too long
            optimizer = adam(trained, optim.lr, optim.momentum, optim.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                trained.parameters(), optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
            )
        with torch.enable_grad():
            gradients = criteria.latent_gradients(
                self.net, hypernetwork, zip(images, targets, strict=True), self.loss, optimizer
            )
        self.net.zero_grad(set_to_none=True)
        if self.options.score == "gradient":
            return criteria.gradient(hypernetwork, gradients[1:])
        if self.options.score == "magnitude":
            return criteria.magnitude(hypernetwork)
        return criteria.random(hypernetwork, self.training.seed)
