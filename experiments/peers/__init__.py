"""What other tools make of the same network, under the same budget."""

import experiments.zoo  # noqa: F401  # before torchmetrics finds torchvision: it is imported without its operators
