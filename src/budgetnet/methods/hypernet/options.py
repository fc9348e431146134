"""Options of networks that latent vectors decide on: conf/method/dhp.yaml and lwdna.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.errors import UsageError
from budgetnet.options import require_one_of, require_positive

SCORES = ("gradient", "magnitude", "random")


@dataclass(frozen=True)
class Shrinking:
    """conf/method/dhp.yaml: how wide the network is made, and how fast its latents shrink.

    search_epochs: the most epochs in which latents shrink, by default all before fine-tuning.
    sparsity: the shrinkage of a latent in a step, times the learning rate.
    threshold: the size below which a latent counts as gone.
    floor: the fewest channels of a group.
    check_every: the number of steps between two looks at what is left.
    embedding: the numbers between a latent and a kernel.

    Raises UsageError for values out of range.
    """

    multiplier: float = 1.0
    search_epochs: int | None = None
    sparsity: float = 2e-4
    threshold: float = 5e-3
    floor: int = 4
    check_every: int = 100
    embedding: int = 8

    def __post_init__(self) -> None:
        require_positive(
            "method",
            search_epochs=self.search_epochs,
            sparsity=self.sparsity,
            threshold=self.threshold,
            check_every=self.check_every,
            embedding=self.embedding,
        )


@dataclass(frozen=True)
class Selection:
    """conf/method/lwdna.yaml: how wide the network is made, and by what its channels are chosen.

    score: "gradient" of the latents, or the controls "magnitude" and "random".
    batches: the number of batches of SGD in the search.
    rho, tau: the smallest fraction of its channels that a group keeps, and that of the group before the classifier.
    embedding: the numbers between a latent and a kernel.

    Raises UsageError for values out of range.
    """

    multiplier: float = 2.0
    score: str = "gradient"
    batches: int = 2
    rho: float = 0.2
    tau: float = 0.45
    embedding: int = 8

    def __post_init__(self) -> None:
        require_one_of("method", "score", self.score, SCORES)
        require_positive("method", embedding=self.embedding)
        if self.batches < 2:
            raise UsageError(f"method.batches={self.batches}: expected 2 or more, as the first gradients say nothing")
