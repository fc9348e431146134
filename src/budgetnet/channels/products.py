"""Products of tensors: matmul, einsum, and those that are taken as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgetnet.channels.calls import Call
from budgetnet.channels.labels import Plane, aligned, vector_plane
from budgetnet.channels.prices import price
from budgetnet.channels.running import Rule, Run


def matmul(run: Run, call: Call) -> Any:
    """A product of two tensors: what is summed over meets, what is left of each lies along the result."""
    left, right, out = call.tensors[0], call.tensors[1], call.run()
    place = run.place(call.name)
    summed = (left.dim() - 1, max(right.dim() - 2, 0))
    weight = run.names.get(id(right)) if right.dim() == 2 else None
    results: list[Plane] = []
    inner: list[Tensor] = []
    for tensor, dim in ((left, summed[0]), (right, summed[1])):
        more = out.dim() - tensor.dim()
        found = None
        for plane in run.known(tensor).planes:
            if dim in plane.dims:
                if len(plane.dims) > 1:
                    run.keep_labels(plane.labels, place.operation, "sums over some of its channels")
                found = plane.labels.reshape(-1) if len(plane.dims) == 1 else None
            elif more >= 0:
                results.append(aligned(plane, out.dim()))
            else:
                run.keep_labels(plane.labels, place.operation, "is a product with a vector")
        inner.append(torch.zeros(tensor.shape[dim], dtype=torch.int64) if found is None else found)
    if bool((inner[0] != 0).any()) or bool((inner[1] != 0).any()):
        run.labels.unite(inner[0], inner[1])
        if weight is not None and run.of_image(left):
            run.read(right, 0, inner[1])
        elif left.dim() == 2 and id(left) in run.names and run.of_image(right):
            run.read(left, 1, inner[1])
        elif run.of_image(left, right):
            run.labels.mix(inner[0])
            if not run.of_image(right):
                run.read(right, summed[1], inner[1])
            elif not run.of_image(left):
                run.read(left, summed[0], inner[0])
    cost = run.per_image(price(call.name, call.argument, out), left, right)
    if weight is not None:
        run.axis(weight, 1, layout := run.produce(right, 1, "linear"))
        run.producers.append((weight, "other", layout))
    run.term(run.current(), cost, inner[0], *(plane.labels.reshape(-1) for plane in results))
    run.carry(out, results, image=run.of_image(left, right))
    return out


def einsum(run: Run, call: Call) -> Any:
    """Of one or two tensors, each letter a dimension: letters that are summed over meet, the others stay.

    A letter of a weight of the network that meets one of an activation is what that weight reads.
    """
    equation, operands = call.argument(0, "equation"), call.tensors
    terms, _, result = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    if not result:
        result = "".join(letter for letter in sorted(set(terms) - {","}) if terms.count(letter) == 1)
    repeated = any(len(set(term)) < len(term) for term in inputs)
    if "." in equation or repeated or len(operands) > 2 or len(inputs) != len(operands):
        return fixed(run, call)
    out, found = call.run(), dict[str, Tensor]()
    for term, tensor in zip(inputs, operands, strict=True):
        for plane in run.known(tensor).planes:
            if len(plane.dims) > 1:
                run.keep_labels(plane.labels, call.name, "works across its channels")
                continue
            (dim,) = plane.dims
            vector = plane.labels.reshape(-1)
            run.labels.unite(found.setdefault(term[dim], vector), vector)
    for letter, vector in found.items():
        holders = [(term, tensor) for term, tensor in zip(inputs, operands) if letter in term]
        for term, tensor in holders:
            known = run.known(tensor)
            if not known.blank and not any(term.index(letter) in plane.dims for plane in known.planes):
                run.keep_labels(vector, call.name, "meets something that has no channels")
        if letter not in result:
            weights = [(run.names[id(t)], term) for term, t in holders if id(t) in run.names]
            if len(holders) == 2 and len(weights) == 1:
                name, dim = weights[0][0], weights[0][1].index(letter)
                if run.reads.setdefault(name, dim) == dim:
                    continue
            run.labels.mix(vector)
            for term, tensor in holders:
                if not run.of_image(tensor):
                    run.read(tensor, term.index(letter), vector)
    for term, tensor in zip(inputs, operands):
        if (parameter := run.names.get(id(tensor))) is not None:
            for letter in found.keys() & set(term) & set(result):
                if not any(letter in other for other, t in zip(inputs, operands) if t is not tensor):
                    kind = "linear" if tensor.dim() == 2 else "other"
                    run.producers.append((parameter, kind, found[letter]))
    if len(operands) == 2:
        cost = run.per_image(price(call.name, call.argument, out), *operands)
        run.term(run.current(), cost, *found.values())
    lying = [vector_plane(found[letter], dim, out.dim()) for dim, letter in enumerate(result) if letter in found]
    run.carry(out, lying, image=run.of_image(*operands))
    return out


def fixed(run: Run, call: Call) -> Any:
    """Attention in one call, and products that are not looked into: what they read stays as it is."""
    return run.opaque(call, run.place(call.name), "is taken as a whole")


_WHOLE = (
    "multi_head_attention_forward", "scaled_dot_product_attention", "addmm", "baddbmm", "addbmm", "mv", "dot", "vdot",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "bilinear",
    "outer", "cdist", "kron", "tensordot", "_native_multi_head_attention", "affine_grid",
)  # fmt: skip

PRODUCTS: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    "einsum": einsum,
    **dict.fromkeys(_WHOLE, fixed),
}
