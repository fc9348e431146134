"""What meets element by element changes together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from budgetnet.channels.calls import Call
from budgetnet.channels.labels import Carried, Plane, aligned
from budgetnet.channels.running import Run


def join_planes(
    run: Run, call: Call, entries: Sequence[tuple[Sequence[int], Carried]], shape: Sequence[int]
) -> list[Plane]:
    """What an element-wise operation gives: labels that meet change together.

    entries: the shape of each tensor and what it carries. A single channel that is spread over many stays single, and
    what meets a constant stays as it is.
    """
    rank, result = len(shape), list[Plane]()
    shapes = [(1,) * (rank - len(own)) + tuple(own) for own, _ in entries]
    for own, (_, carried) in zip(shapes, entries, strict=True):
        for plane in carried.planes:
            plane = aligned(plane, rank)
            if any(own[d] != shape[d] for d in plane.dims):
                run.keep_labels(plane.labels, call.name, "spreads one channel over many")
                continue
            for place, other in enumerate(result):
                if other.dims & plane.dims:
                    run.labels.unite(other.labels, plane.labels)
                    result[place] = _merged(other, plane)
                    break
            else:
                result.append(plane)
    for own, (_, carried) in zip(shapes, entries, strict=True):
        if carried.blank:
            continue
        dims = {d for plane in carried.planes for d in aligned(plane, rank).dims}
        for plane in result:
            if not plane.dims & dims and all(own[d] > 1 for d in plane.dims):
                run.keep_labels(plane.labels, call.name, "meets something that has no channels")
    return result


def _merged(one: Plane, other: Plane) -> Plane:
    if one.dims == other.dims and one.labels.data_ptr() == other.labels.data_ptr():
        return one
    if one.dims >= other.dims and bool((one.labels >= 0).all()):
        return one
    return Plane(torch.where(one.labels < 0, other.labels, one.labels), one.dims | other.dims)
