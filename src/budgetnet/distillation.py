"""Knowledge distillation (Hinton et al. 2015): a network learns from labels and from a trained network's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

TEMPERATURE = 4.0
SHARE = 0.4
"""Of the teacher in the loss; the labels have the rest."""


def distillation_losses(
    logits: Tensor,
    teacher_logits: Tensor,
    losses: Tensor,
    temperature: float = TEMPERATURE,
    share: float = SHARE,
) -> Tensor:
    """(N,): (1 - share) · losses + share · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), by default .6 and .4.

    logits, teacher_logits: (N, K), or (N, K, ...) of which places are averaged; KL is summed over the K classes.
    losses: (N,) of the labels, cross-entropy in the paper (LW-DNA, CVPR 2021). No gradient reaches the teacher, whose
    logits are those of a network in eval mode on the same augmented images.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    divergence = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return (1 - share) * losses + share * temperature**2 * divergence.reshape(len(logits), -1).mean(1)
