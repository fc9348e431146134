"""Build the networks of others: their classes and channels under whatever names they have for them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn

from budgetnet.errors import UsageError

CLASSES = ("num_classes", "n_classes", "classes", "num_class", "n_class", "nclass")
CHANNELS = ("in_channels", "in_chans", "in_c", "input_channels", "in_channel", "in_ch")


def construct(
    target: Callable[..., nn.Module],
    num_classes: int,
    in_channels: int,
    num_classes_name: str | None = None,
    in_channels_name: str | None = None,
    given: Collection[str] = (),
    make: Callable[..., nn.Module] | None = None,
) -> nn.Module:
    """Call `target` with the number of classes and of input channels, as far as it takes them.

    The names are read off its signature; one that passes on whatever it gets (**options) is tried with one name after
    another, and at last without channels. num_classes_name, in_channels_name: what it calls them, where no common name
    is meant. given: arguments that are given already. make: called in the place of `target`, with the same names.
    Raises UsageError for one that takes no number of classes.
    """
    name = getattr(getattr(target, "func", target), "__name__", str(target))
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of some built-in types
        return (make or target)(num_classes=num_classes, in_channels=in_channels)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for kind, own in (("num_classes_name", num_classes_name), ("in_channels_name", in_channels_name)):
        if own is not None and own not in parameters and not open_ended:
            raise UsageError(f"backbone.{kind}={own}: {name} takes {', '.join(parameters) or 'nothing'}")

    def names(own: str | None, common: Sequence[str]) -> Iterator[str]:
        if own is not None:
            yield own
        elif any(option in parameters for option in common):
            yield next(option for option in common if option in parameters)
        elif open_ended:
            yield from common

    classes = list(names(num_classes_name, CLASSES))
    if set(CLASSES) & set(given):
        classes = [""]
    if not classes and not parameters:
        raise UsageError(
            f"backbone: {name} takes no number of classes (its constructor takes nothing): give it num_classes, "
            "and in_channels where images have other channels"
        )
    if not classes:
        raise UsageError(
            f"{name} takes no number of classes that is called {', '.join(CLASSES[:3])} or the like: say what it is "
            f"called, backbone.num_classes_name=..., of {', '.join(parameters)}"
        )
    channels = [""] if set(CHANNELS) & set(given) else [*names(in_channels_name, CHANNELS), ""]
    refused: TypeError | None = None
    for one in classes:
        for other in channels:
            arguments = {key: value for key, value in ((one, num_classes), (other, in_channels)) if key}
            try:
                return (make or target)(**arguments)
            except TypeError as error:
                if not any(f"argument '{key}'" in str(error) for key in arguments):
                    raise
                refused = error
                if one and f"argument '{one}'" in str(error):
                    break
    raise UsageError(
        f"{name} takes no number of classes under a common name ({refused}): backbone.num_classes_name=..."
    )


def check_output(net: nn.Module, shape: Sequence[int], expected: Sequence[int], name: str) -> None:
    """Raises UsageError unless the network gives logits of `expected` shape for two images of `shape`.

    It is run without data and without a cost; shape: (channels, height, width). expected: without the images.
    """
    shadow = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad():
        try:
            logits = shadow(torch.empty(2, *shape, device="meta"))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"backbone={name} does not take images of shape {tuple(shape)}: {line}") from error
    found = tuple(logits.shape[1:]) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != tuple(expected):
        raise UsageError(
            f"backbone={name} gives {found} for an image of shape {tuple(shape)}: expected {tuple(expected)}"
        )
