"""Networks that no backbone resembles: what the channel graph must follow, and what it must refuse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from budgetnet import ChannelGraph


class SqueezeExcite(nn.Module):
    """Channel attention by two 1×1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Odd(nn.Module):
    """(batch, 3, 8, 8) to (batch, 10): depthwise, squeeze-excite, residual, concatenation, grouped, 4×4 flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.attention = SqueezeExcite(8, 4)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.left = nn.Conv2d(8, 5, 3, stride=2, padding=1)
        self.right = nn.Conv2d(8, 7, 1, stride=2)
        self.mix = nn.Conv2d(12, 12, 1)
        self.grouped = nn.Conv2d(12, 9, 3, padding=1, groups=3)
        self.multiplied = nn.Conv2d(9, 18, 3, padding=1, groups=9)
        self.hidden = nn.Linear(18 * 16, 14)
        self.classifier = nn.Linear(14, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.pointwise(self.attention(F.hardswish(self.depthwise_norm(self.depthwise(x)))))
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        x = F.silu(self.grouped(F.silu(self.mix(x))))
        x = self.multiplied(x)
        x = x.view(x.size(0), -1)
        return self.classifier(torch.relu(self.hidden(x)))


def odd(dtype: torch.dtype = torch.float32) -> Odd:
    """The same weights every time, traced."""
    torch.manual_seed(0)
    net = Odd().to(dtype)
    ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    return net


def step(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    """Train on the same random images every time."""
    generator = torch.Generator().manual_seed(0)
    dtype = next(net.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=generator, dtype=dtype)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()


class Small(nn.Module):
    """A user's network for (batch, 1, 28, 28) digits."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(in_channels, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.second, self.classifier = nn.Conv2d(8, 16, 3, stride=2), nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.classifier(self.pick(x).mean((2, 3)))

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Sorting(Small):
    """The same, with an operation that nothing can be said about."""

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=1).values


class Forgetful(Small):
    """The same, with dropout: what it learns depends on the random state."""

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.2, training=self.training)


class Gate(nn.Module):
    """Channel attention without a hidden layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.mix(x.mean((2, 3), keepdim=True)))


class GatedBlock(nn.Module):
    """A residual block with a plain addition, a gate behind its norm, and a scale of its own kind."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm, self.gate = nn.GroupNorm(2, outputs), Gate(outputs)
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.project(x) + self.gate(self.norm(self.second(self.first(x)))))


class Plain(nn.Sequential):
    """A convolution, a norm and a ReLU, without a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """A convolution beside a plain shortcut: it has no width of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(F.relu(x))


class Stages(nn.Module):
    """A user's network: stages of blocks (the second strided), one of plain layers, and sequences that are none."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.ModuleDict({
            "wide": nn.Sequential(GatedBlock(6, 6), GatedBlock(6, 6), GatedBlock(6, 6)),
            "deep": nn.Sequential(GatedBlock(6, 8, 2), GatedBlock(8, 8)),
            "joined": nn.Sequential(Residual(8), Residual(8)),
            "plain": nn.Sequential(Plain(8, 9), Plain(9, 9)),
            "narrowing": nn.Sequential(Plain(9, 8), Plain(8, 6)),
        })  # fmt: skip
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for part in self.body.values():
            x = part(x)
        return self.head(x.mean((2, 3)))


class Convolutional(nn.Module):
    """A user's network for segmentation, (batch, in_channels, H, W) to (batch, num_classes, H, W): it sees 9×9."""

    def __init__(self, num_classes: int, in_channels: int, task: str, image_size: list[int]) -> None:
        super().__init__()
        assert task == "segmentation" and len(image_size) == 2
        self.first, self.first_norm = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.down_norm = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.up, self.classify = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = F.relu(self.first_norm(self.first(x)))
        coarse = F.relu(self.down_norm(self.down(fine)))
        return self.classify(F.relu(fine + self.up(F.interpolate(coarse, scale_factor=2))))


class Coarse(Convolutional):
    """The same, at half the resolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :, ::2, ::2]


class Five(nn.Module):
    """Five outputs, however many classes there are."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(in_channels, 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.convolution(x).mean((2, 3)))


class Closed(nn.Module):
    """A network whose number of classes is written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 10)


class Hasty(nn.Module):
    """A network that forgets to begin with super().__init__()."""

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        self.head = nn.Linear(in_channels, num_classes)
