"""The text of `budgetnet --help`: the options that people change, and five commands."""

from __future__ import annotations

import shlex

from budgetnet.command.names import program

OPTIONS = (
    ("budget.flops=50%", "limit of the network: 580k, 42M, 0.5G or 50% of the full one"),
    ("budget.params=1M", "limit of its parameters; all limits that are given hold"),
    ("budget.train_cost=10%", "limit of the learning, in FLOPs of forward passes"),
    ("dataset=folder", "your pictures; or cifar10, mnist, digits, imagenet, ..."),
    ("dataset.root=DIR", "where the data is"),
    ("dataset.image_size=64", "pixels to which pictures of a folder are resized"),
    ("dataset.batch_size=32", "images of a training step"),
    ("backbone=resnet18", "the network that is made to fit; own for one of yours"),
    ("backbone.weights=FILE", "trained weights to start from"),
    ("method=adenel", "grow; or l1, fpgm, bsn, lwdna, exits, width, train, ..."),
    ("optim.lr=0.1", "learning rate"),
    ("epochs=300", "of the whole run, at most"),
    ("finetune.epochs=150", "after the network has its size"),
    ("growth.epochs_per_round=10", "training before the network grows again"),
    ("start.from=RUN", "go on from a finished run"),
    ("seed=0", "of everything that is drawn"),
    ("trainer.devices=2", "GPUs, with trainer=ddp"),
    ("recipe=modern", "cosine, warm-up, label smoothing; or paper"),
    ("logger=csv", "or wandb, tensorboard"),
    ("run.dir=DIR", "where the run is kept; by itself runs/ and the overrides"),
    ("plan=true", "say what would happen, and train nothing"),
)
EXAMPLES = (
    ("your pictures", "dataset=folder dataset.root=my_pictures backbone=resnet18 budget.flops=50%"),
    ("CIFAR-10", "backbone=resnet32 budget.flops=0.5G"),
    ("the whole way through in half a minute", "experiment=demo"),
    ("a sweep", "-m backbone=vgg16 budget.flops=20M,42M,80M seed=0,1,2"),
    ("prune instead of growing", "method=l1 backbone=resnet20 budget.flops=50%"),
)  # fmt: skip


def text() -> str:
    """The help, in lines of at most 80 columns where the examples allow it."""
    start = shlex.join(program())
    lines = [f"{start} OPTION=VALUE ...", "State a budget, get the best network that fits it.", ""]
    lines += [f"  {option:27}{meaning}" for option, meaning in OPTIONS]
    lines += ["", "Examples:"]
    for meaning, command in EXAMPLES:
        lines += [f"  # {meaning}", f"  {start} {command}"]
    lines += ["", "All options: --cfg job. What Hydra itself takes: --hydra-help."]
    return "\n".join(lines)
