"""Early exits whose samples are weighted by what a predictor has learned (Han et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from budgetnet.errors import UsageError
from budgetnet.methods.exits.bilevel import Weighting, halves, meta_step, training_loss
from budgetnet.methods.exits.equal import Exits
from budgetnet.methods.exits.exchange import ALONE, among_processes
from budgetnet.methods.exits.options import Weights
from budgetnet.methods.exits.weights import Centring, WeightPrediction
from budgetnet.methods.method import Training, detached
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.tasks.multi_exit import MultiExit


class L2W(Exits):
    """Learns weights of samples at exits with the network: a batch is halved, and each half serves the other.

    A step is two steps of the network, one on each half, with the weights predicted for it; every `interval` batches
    of an epoch each is preceded by a step of the predictor, whose loss is that of the other half after a pseudo-step.
    The images are given to the exits that would classify them under a budget, which q stands for.
    """

    create_graph = True
    unused_parameters = True

    def __init__(self, optim: Optimization, finetune: FineTuning, method: Weights) -> None:
        super().__init__(optim, finetune, method)
        self.options = method
        self._exchange = ALONE
        self._counted: list[Tensor] = []
        """By step, float32 (6, exits): images, and sums of w, l, w², l² and w·l over them."""
        self._totals = torch.zeros(0, dtype=torch.float64)
        """The same, of the running epoch and of all processes."""

    def start(self, training: Training) -> list[Phase]:
        """Raises UsageError also for what the pseudo-step cannot follow."""
        phases = super().start(training)
        self.predictor = WeightPrediction(len(self.flops), self.options.width, self.options.depth)
        self.modules["predictor"] = self.predictor
        if training.micro_batches > 1:
            raise UsageError(
                f"trainer.micro_batches={training.micro_batches}: method=l2w halves a batch, and each half is one "
                "part; leave it out"
            )
        if any(isinstance(module, nn.SyncBatchNorm) for module in training.net.modules()):
            raise UsageError(
                "trainer.sync_batchnorm=true cannot be differentiated forwards, as method=l2w does: leave it out"
            )
        return phases

    def check(self, continued: bool) -> None:
        """Raises UsageError for a batch that cannot be halved."""
        training = self.training
        if (own := training.batch_size // training.processes.count) < 2:
            raise UsageError(
                f"dataset.batch_size={training.batch_size} gives each process {own} image, which cannot be halved: "
                "expected 2 or more, such as dataset.batch_size=128"
            )

    def begin(self) -> None:
        """Raises UsageError for a precision that is too low for the meta-gradient."""
        if self.training.dtype != torch.float32 or self.training.loss_scale() != 1:
            raise UsageError(
                "trainer.precision: method=l2w takes gradients of gradients, which need 32-true or bf16-mixed"
            )
        self._exchange = among_processes() if self.training.processes.several else ALONE

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """That of the network, and Adam for the predictor; its learning rate follows the network's."""
        options = self.options
        parameters = self.predictor.parameters()
        return [*super().optimizers(), torch.optim.Adam(parameters, options.lr, weight_decay=options.weight_decay)]

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The steps of both halves; but the last one of the network is left to the trainer."""
        training, options = self.training, self.options
        network, predictor = cast("tuple[torch.optim.SGD, torch.optim.Adam]", training.optimizers)
        for group in predictor.param_groups:
            group["lr"] = options.lr * network.param_groups[0]["lr"] / self.optim.lr
        weighting = Weighting(self.predictor, cast(Centring, options.centring), options.delta, self._exchange)
        task = training.task
        assert isinstance(task, MultiExit)
        first, second = halves(images, targets)
        found, sums = [], []
        for train, meta in ((first, second), (second, first)):
            if train is second:
                network.step()
                network.zero_grad(set_to_none=True)
            if training.batch % options.interval == 0:
                labelled = (meta[0], task.labels(meta[1]))
                meta_step(self.net, network, weighting, train, labelled, options.q, task.exit_losses)
                predictor.step()
                predictor.zero_grad(set_to_none=True)
            output = self.forward(train[0])
            losses = task.exit_losses(output, train[1])
            loss, weights = training_loss(losses, weighting)
            training.backward(loss)
            self._count(weights, losses.detach())
            found.append(loss.detach())
            sums.append(task.sums(detached(output), train[1]))
        return torch.stack(found).mean(), torch.stack(sums).sum(0)

    def computed(self, images: int) -> list[tuple[int, int]]:
        """In a meta step every image is passed three times more: weighted, classified, and differentiated forwards."""
        times = 4 if self.training.batch % self.options.interval == 0 else 1
        (_, flops), *teacher = super().computed(images)
        return [(times * images, flops), *teacher]

    # -- what is recorded of the weights ------------------------------------------------------------------------------

    def _count(self, w: Tensor, losses: Tensor) -> None:
        if self.training.batch == 0 and len(self._totals):
            self._totals = torch.zeros(0, dtype=torch.float64)
        sums = [torch.ones_like(w), w, losses, w * w, losses * losses, w * losses]
        self._counted.append(torch.stack([each.float().sum(0) for each in sums]))

    def collect(self) -> None:
        if self._counted:
            own = torch.stack(self._counted).cpu().double().sum(0)
            total = self.training.processes.sum(own)
            self._totals = self._totals + total if len(self._totals) else total
            self._counted = []

    def rows(self) -> dict[str, dict[str, float]]:
        """weights.csv: by exit, the mean weight and the mean loss of an epoch's samples, and their correlation."""
        count, w, losses, w2, losses2, product = self._totals
        w, losses = w / count, losses / count
        covariance = product / count - w * losses
        spread = ((w2 / count - w**2) * (losses2 / count - losses**2)).clamp(min=0).sqrt()
        correlation = torch.where(spread > 0, covariance / spread, 0.0)
        row: dict[str, float] = {}
        for name, values in (("weight", w), ("loss", losses), ("correlation", correlation)):
            row |= {f"{name}_{number}": value for number, value in enumerate(values.tolist(), start=1)}
        return {**super().rows(), "weights": row}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "totals": self._totals.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._totals = torch.tensor(state["totals"], dtype=torch.float64)
