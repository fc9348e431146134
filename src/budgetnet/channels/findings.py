"""What one trace of a network finds: the channels along its tensors, which of them change together, and the costs."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels.calls import NOT_THE_USERS, Call, Cost, Event, Place
from budgetnet.channels.labels import Carried, Labels, Plane, vector_plane
from budgetnet.channels.prices import Price


class Findings:
    """Everything that one trace finds, and where in the model it stands.

    axes: parameter or buffer -> {dimension: labels}. attributes: (module, attribute) -> labels; numbers: the same, of
    modules that are none of torch's layers. reads: the dimension of a weight along which its layer reads; computed: the
    same of weights that are computed, (from what, the dimension, what is read). producers, consumers: (module, labels)
    in order of execution. stack: the modules that are being run.
    """

    def __init__(self, model: nn.Module, frozen: frozenset[str]) -> None:
        self.model, self.frozen = model, frozen
        self.labels = Labels()
        self.names: dict[int, str] = {}
        self.buffers: set[str] = set()
        self.modules: dict[str, nn.Module] = {}
        self.axes: dict[str, dict[int, Tensor]] = {}
        self.parts: dict[str, int] = {}
        self.attributes: dict[tuple[str, str], Tensor] = {}
        self.numbers: dict[tuple[str, str], Tensor] = {}
        self.reads: dict[str, int] = {}
        self.computed: list[tuple[frozenset[str], int, Tensor]] = []
        self.producers: list[tuple[str, str, Tensor]] = []
        self.consumers: list[tuple[str, Tensor]] = []
        self.costs: list[Cost] = []
        self.joins: list[tuple[Tensor, Tensor]] = []
        self.residual = False
        self.outputs: list[tuple[str, Tensor]] = []  # what each layer has made
        self.norms: list[tuple[str, Tensor]] = []  # what each norm has read
        self.events: list[Event] = []
        self.refused: list[tuple[Place, str]] = []
        self.fixed: list[tuple[Place, str, Tensor]] = []  # what an operation keeps as it is, and why
        self.found_frozen: set[str] = set()
        self.stack: list[tuple[str, nn.Module]] = []
        self.counting = True
        self.learn()

    def learn(self) -> None:
        """Know the tensors of the model by name; anew after one was replaced."""
        self.modules = dict(self.model.named_modules())
        self.names, self.buffers = {}, set()
        for path, module in self.modules.items():
            for store in (module._parameters, module._buffers):
                for leaf, tensor in store.items():
                    if tensor is not None:
                        name = self.names.setdefault(id(tensor), f"{path}.{leaf}" if path else leaf)
                        if store is module._buffers:
                            self.buffers.add(name)

    # -- where it stands ----------------------------------------------------------------------------------------------

    def current(self) -> str:
        """Path of the module that is being run."""
        return self.stack[-1][0] if self.stack else ""

    @staticmethod
    def line() -> tuple[str, int]:
        """File and number of the line of the user's code that is being run."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
            frame = frame.f_back
        return frame.f_code.co_filename, frame.f_lineno

    def place(self, operation: str) -> Place:
        """Where the operation that is being run stands."""
        file, line = self.line()
        module, own = "", True
        if self.stack:
            own = not type(self.stack[-1][1]).__module__.startswith("torch.nn.")
            module = self.stack[-1][0]
        return Place(operation, module, file, line, own)

    # -- what tensors carry -----------------------------------------------------------------------------------------

    def known(self, tensor: Tensor) -> Carried:
        """What is known of a tensor; parameters get labels when they are first used outside a layer."""
        found: Carried | None = getattr(tensor, "_carried", None)
        if found is not None:
            return found
        name = self.names.get(id(tensor))
        if name is None or not tensor.is_floating_point() or tensor.numel() < 2:
            return Carried(image=name is None and tensor.is_meta)
        planes = []
        for dim in self.dimensions(name, tensor):
            if tensor.shape[dim] > 1 or dim in self.axes.get(name, {}):
                planes.append(vector_plane(self.axis(name, dim, self.labels.new(tensor.shape[dim])), dim, tensor.dim()))
        carried = Carried(tuple(planes), image=False)
        tensor._carried = carried  # type: ignore[attr-defined]
        return carried

    def dimensions(self, name: str, tensor: Tensor) -> range:
        """Along which a parameter may have channels: the kernel of a convolution has none, nor a part of its inputs."""
        path, _, leaf = name.rpartition(".")
        module = self.modules.get(path)
        if leaf == "weight" and isinstance(module, nn.modules.conv._ConvNd):
            return range(2 if module.groups == 1 else 1)
        return range(tensor.dim())

    def of_image(self, *tensors: Tensor) -> bool:
        """Whether something of this is computed from the input, not of weights alone."""
        return any(self._of_image(tensor) for tensor in tensors)

    def _of_image(self, tensor: Tensor) -> bool:
        """Without `known`, which gives labels to a parameter: inside a frozen module it is to have none."""
        carried: Carried | None = getattr(tensor, "_carried", None)
        return id(tensor) not in self.names and tensor.is_meta if carried is None else carried.image

    def carry(
        self,
        tensor: Tensor,
        planes: Sequence[Plane],
        blank: bool = False,
        image: bool = True,
        spread: frozenset[int] = frozenset(),
    ) -> Tensor:
        tensor._carried = Carried(tuple(planes), blank, image, spread)  # type: ignore[attr-defined]
        return tensor

    def keep(self, tensor: Tensor, place: Place, why: str) -> None:
        """The channels of a tensor stay as they are."""
        for plane in self.known(tensor).planes:
            self.keep_labels(plane.labels, place, why)

    def keep_labels(self, labels: Tensor, place: Place | str, why: str) -> None:
        place = self.place(place) if isinstance(place, str) else place
        self.fixed.append((place, why, labels.reshape(-1).clone()))
        self.labels.freeze(labels)

    def vector(self, tensor: Tensor, dim: int, operation: str, strict: bool = True) -> Tensor:
        """(size,) labels along a dimension. strict: labels that vary along others only are kept as they are."""
        dim %= tensor.dim()
        found: Tensor | None = None
        for plane in self.known(tensor).planes:
            if dim in plane.dims:
                rows = plane.labels.movedim(dim, 0).reshape(plane.labels.shape[dim], -1)
                if rows.shape[1] > 1:
                    self.labels.unite(rows[:, :1], rows)
                if found is None:
                    found = rows[:, 0]
                else:
                    self.labels.unite(found, rows[:, 0])
            elif strict:
                self.keep_labels(plane.labels, operation, "works across its channels")
        return torch.zeros(tensor.shape[dim], dtype=torch.int64) if found is None else found

    def axis(self, name: str, dim: int, vector: Tensor) -> Tensor:
        """These labels lie along a dimension of a parameter or buffer; those that already do are joined to them."""
        known = self.axes.setdefault(name, {}).setdefault(dim, vector)
        if known is not vector:
            self.labels.unite(known, vector)
        if name in self.frozen:
            self.found_frozen.add(name)
            self.keep_labels(known, Place("forward", name, "", 0, True), "is frozen")
        return known

    def tensor_axis(self, tensor: Tensor | None, dim: int, vector: Tensor) -> None:
        """The same for any tensor that an operation was given, such as the bias of a convolution."""
        if tensor is None:
            return
        name = self.names.get(id(tensor))
        if name is not None:
            self.axis(name, dim, vector)
            return
        planes = [plane for plane in self.known(tensor).planes if dim in plane.dims]
        for plane in planes:
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            self.labels.unite(plane.labels, vector.reshape(shape))
        if not planes and not self.known(tensor).blank and tensor.shape[dim] > 1:
            self.labels.freeze(vector)

    def produce(self, tensor: Tensor, dim: int, kind: str) -> Tensor:
        """(size,) labels of what a weight makes: new ones at its first use."""
        name = self.names.get(id(tensor))
        if name is None:
            vector = None
            for plane in self.known(tensor).planes:
                if dim in plane.dims:
                    vector = plane.labels.movedim(dim, 0).reshape(tensor.shape[dim], -1)
                    self.labels.unite(vector[:, :1], vector)
                    vector = vector[:, 0]
            return self.labels.new(tensor.shape[dim]) if vector is None else vector
        known = self.axes.get(name, {}).get(dim)
        return self.labels.new(tensor.shape[dim]) if known is None else known

    def read(self, weight: Tensor, dim: int, source: Tensor) -> None:
        """A layer reads these channels along a dimension of its weight."""
        if (name := self.names.get(id(weight))) is not None:
            self.reads.setdefault(name, dim)
        else:
            self.computed.append((self.factors(weight), dim, source))

    def factors(self, *tensors: Tensor) -> frozenset[str]:
        """Of which tensors of the model these are computed; without those that only scale another, or mask it."""
        found: set[str] = set()
        for tensor in tensors:
            name = self.names.get(id(tensor))
            found |= getattr(tensor, "_factors", frozenset()) if name is None else {name}
        return frozenset(found)

    def factors_of(self, call: Call) -> frozenset[str]:
        """The same of the result of an operation: new inputs are silent if one factor of a product has zeros there."""
        if call.name in ("mul", "div") and len(call.tensors) == 2:
            left, right = call.tensors
            along = [{dim for plane in self.known(tensor).planes for dim in plane.dims} for tensor in call.tensors]
            constant = self.factors(left) <= self.buffers
            if along[1] <= along[0] and not (along[0] == along[1] and constant):
                return self.factors(left)
            if along[0] <= along[1]:
                return self.factors(right)
        return self.factors(*call.tensors)

    def term(self, module: str, cost: Price, *factors: Tensor, divisor: int = 1) -> None:
        """A cost in proportion to the lengths of `factors`; what is in no such proportion stays as it is."""
        length = math.prod(len(factor) for factor in factors)
        for matrix, amount in ((True, cost.macs), (False, cost.other)):
            if amount * divisor % length:
                for factor in factors:
                    self.keep_labels(factor, "forward", "costs what is in no proportion to its channels")
            if amount and self.counting:
                kept = () if amount * divisor % length else factors
                self.costs.append(Cost(module, matrix, amount, kept, divisor if kept else 1))

    def keep_products(self) -> None:
        """Of what costs a product of more than two widths, the narrowest stay as they are."""
        for cost in self.costs:
            changing = [factor for factor in cost.factors if bool((self.labels.roots(factor) > 0).any())]
            for factor in sorted(changing, key=len)[: max(0, len(changing) - 2)]:
                place = Place("forward", cost.module, "", 0, True)
                self.keep_labels(factor, place, "costs what is a product of more than two widths")

    def made(self, tensor: Tensor, weight: Tensor) -> None:
        """A layer has made this tensor with its weight, uncomputed: a norm may stand behind it."""
        path, _, leaf = self.names.get(id(weight), "").rpartition(".")
        if leaf == "weight":
            self.outputs.append((path, tensor))

    def normed(self, tensor: Tensor, norm: str) -> None:
        """A norm reads this tensor."""
        self.norms.append((norm, tensor))
