"""Budget: limits on the costs of a network and of its training."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real

from budgetnet.errors import RunError, UsageError

KINDS = ("flops", "params", "train_cost", "latency", "sequential_ops", "mean_flops")
MOST_MACHINES = 1024

_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*([a-zA-Z%]*)", re.ASCII)
_TIMES = {"us": 1, "ms": 10**3, "s": 10**6}
_EXPECTED_TIME = "expected a positive time such as 800us, 2.5ms or 0.1s, or whole microseconds"
_EXPECTED = "expected a positive number such as 580k, 42M, 0.5G or 1e6, or a percentage such as 50%"

Quantity = int | float | str


def parse_quantity(value: Quantity, reference: int | float | None = None, option: str = "quantity") -> int | float:
    """The number that `value` states: an int if it is whole, else a float.

    value: a number, or text that states a number, optionally with k, K, M, G, T, P (powers of 1000) or %.
    reference: the number that a percentage refers to.
    option: the name to use in an error message.
    Raises UsageError unless it is a positive finite number, and for a percentage without a reference.

    >>> parse_quantity("0.5G"), parse_quantity("50%", reference=81)
    (500000000, 40.5)
    """
    exact = _exact(value, reference, option)
    return int(exact) if exact.denominator == 1 else float(exact)


def format_quantity(value: int | float) -> str:
    """The value with three significant digits and a suffix.

    >>> format_quantity(42_000_000), format_quantity(580_000), format_quantity(999)
    ('42.0M', '580k', '999')
    """
    for suffix in "PTGMk":
        scaled = value / _SUFFIXES[suffix]
        if abs(scaled) >= 0.9995:
            decimals = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{decimals}f}{suffix}"
    return f"{value:.3g}"


@dataclass(frozen=True, repr=False)
class Budget:
    """Upper limits on costs by kind. All stated limits must hold.

    flops: FLOPs (multiply-accumulates) of one image.
    params: number of parameters.
    train_cost: FLOPs of the forward pass, summed over all training images.
    latency: measured time for one image: text with a unit ("2.5ms"), or a whole number of microseconds.
    sequential_ops: steps of a network of edges on `machines` parallel machines (None means 1).
    mean_flops: mean FLOPs of one image over images that leave a network at different exits.

    Each is None (no limit), a number, or text for `parse_quantity`, and is rounded down to a whole number. A percentage
    stays text until `resolve` replaces it by a number. Raises UsageError, naming the option, for values that
    `parse_quantity` refuses and for a limit below 1.

    >>> Budget(flops="42M", params=580_000)
    Budget(flops<=42.0M, params<=580k)
    """

    flops: Quantity | None = None
    params: Quantity | None = None
    train_cost: Quantity | None = None
    latency: Quantity | None = None
    sequential_ops: Quantity | None = None
    mean_flops: Quantity | None = None
    machines: int | None = None

    def __post_init__(self) -> None:
        for kind, value in self._stated.items():
            if kind == "latency" and not isinstance(value, int):
                value = _microseconds(value)
            object.__setattr__(self, kind, _limit(value, f"budget.{kind}"))
        if self.machines is not None and (type(self.machines) is not int or not 0 < self.machines <= MOST_MACHINES):
            raise UsageError(f"budget.machines={self.machines!r}: expected a whole number, 1 to {MOST_MACHINES}")

    @property
    def limits(self) -> dict[str, int]:
        """The stated limits by kind. Raises UsageError for a percentage that was not resolved."""
        limits = {}
        for kind, value in self._stated.items():
            if not isinstance(value, int):
                raise UsageError(f"budget.{kind}={value} is a percentage: call resolve() with full costs")
            limits[kind] = value
        return limits

    def resolve(self, full: Mapping[str, int | float]) -> Budget:
        """The budget in whole numbers, with percentages of `full`, the costs of the full backbone by kind.

        The train cost in `full` is that of the baseline; mean_flops is a percentage of the full FLOPs. A percentage
        above 100 is allowed. Raises UsageError for a percentage of a kind that `full` does not contain, or of less
        than 1.
        """
        resolved: dict[str, Quantity] = {}
        for kind, value in self._stated.items():
            option = f"budget.{kind}"
            reference = full.get("flops" if kind == "mean_flops" else kind)
            resolved[kind] = _whole(_exact(value, reference, option), value, option)
        return Budget(**resolved, machines=self.machines)

    def require(self) -> None:
        """Raises UsageError if no limit is stated."""
        if not self._stated:
            options = ", ".join(f"budget.{kind}" for kind in KINDS)
            raise UsageError(f"no budget: state at least one of {options}, such as budget.flops=50%")

    def fits(self, costs: Mapping[str, int | float]) -> bool:
        """Whether `costs`, which contain every stated kind, exceed no limit.

        Raises UsageError for a percentage that was not resolved.
        """
        return all(costs[kind] <= limit for kind, limit in self.limits.items())

    def room(self, costs: Mapping[str, int | float]) -> dict[str, int | float]:
        """What remains of each limit; negative if it is exceeded. Raises UsageError for an unresolved percentage."""
        return {kind: limit - costs[kind] for kind, limit in self.limits.items()}

    def used(self, costs: Mapping[str, int | float]) -> dict[str, float]:
        """The used fraction of each limit; above 1 if exceeded. Raises UsageError for an unresolved percentage."""
        return {kind: costs[kind] / limit for kind, limit in self.limits.items()}

    def binding(self, costs: Mapping[str, int | float]) -> str:
        """The kind with the largest used fraction. Raises UsageError if no limit is stated."""
        self.require()
        used = self.used(costs)
        return max(used, key=lambda kind: used[kind])

    def require_kept(self, costs: Mapping[str, int | float], what: str) -> None:
        """Check a network at the end of a plan, or of a run. costs: contain every stated kind, or some.

        Raises RunError, naming the limits that are exceeded: it must not happen, and is never a result.
        """
        limits = {kind: limit for kind, limit in self.limits.items() if kind in costs}
        above = [
            f"{amount(kind, costs[kind])} {kind} are above budget.{kind}={amount(kind, limit)}"
            for kind, limit in limits.items()
            if not costs[kind] <= limit  # true for nan, too
        ]
        if above:
            raise RunError(f"{what} exceeds its budget, which is an error of this program: {'; '.join(above)}")

    def check(
        self,
        seed: Mapping[str, int | float],
        largest: Mapping[str, int | float],
        least: Mapping[str, int | float] | None = None,
        further: str = "",
        begins: str = "seed network",
    ) -> None:
        """Check that growth can reach every limit.

        seed: costs of the seed network, the smallest possible ones.
        largest: costs of the largest network that growth may reach. Its train cost is ignored, since training can
        always take longer.
        least: costs of the narrowest seed network that may be chosen. further: what else would make it smaller.
        begins: what growth begins with.
        Raises UsageError, naming all limits that growth cannot reach.
        """
        problems = []
        for kind, limit in self.limits.items():
            if limit < seed[kind]:
                narrower = " or choose a smaller growth.seed_width" if least is None or limit >= least[kind] else ""
                problems.append(
                    f"budget.{kind}={limit:,} is below the {seed[kind]:,} of the {begins}:"
                    f" raise it{narrower}{further}{percentage(kind, limit)}"
                )
            elif kind != "train_cost" and limit > largest[kind]:
                problems.append(
                    f"budget.{kind}={limit:,} is above the {largest[kind]:,} of the largest network allowed:"
                    f" lower it or choose a larger growth.max_width"
                )
        if problems:
            raise UsageError("; ".join(problems))

    @property
    def _stated(self) -> dict[str, Quantity]:
        values = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: value for kind, value in values.items() if value is not None}

    def __repr__(self) -> str:
        limits = (
            f"{kind}<={value if isinstance(value, str) else _short(kind, value)}"
            for kind, value in self._stated.items()
        )
        return f"Budget({', '.join(limits)})"


def _microseconds(value: Quantity) -> int:
    """Whole microseconds from text with a unit of time."""
    match = _QUANTITY.fullmatch(value.strip().replace("µ", "u")) if isinstance(value, str) else None
    if match is None or match[2] not in _TIMES or Fraction(match[1]) <= 0:
        raise UsageError(f"budget.latency={value}: {_EXPECTED_TIME}")
    return _whole(Fraction(match[1]) * _TIMES[match[2]], value, "budget.latency")


def _short(kind: str, value: int | float) -> str:
    return amount(kind, value) if kind == "latency" else format_quantity(value)


def percentage(kind: str, limit: int | float) -> str:
    """A suffix for an error message about a limit that may have been meant as a percentage.

    >>> percentage("flops", 50), percentage("flops", 101)
    ('; for 50 % of the full one write budget.flops=50%', '')
    """
    meant = limit <= 100 and kind in ("flops", "params", "train_cost")
    return f"; for {limit} % of the full one write budget.{kind}={limit}%" if meant else ""


def amount(kind: str, value: int | float) -> str:
    """A cost or a limit with all digits, for messages: "1,164,556", or "2,500us" for a latency."""
    return f"{value:,}{'us' if kind == 'latency' else ''}"


def _limit(value: Quantity, option: str) -> int | str:
    """`value` as a whole number, or as text without spaces if it is a percentage."""
    if isinstance(value, str) and value.strip().endswith("%"):
        _exact(value, 1, option)
        return value.replace(" ", "")
    return _whole(_exact(value, None, option), value, option)


def _whole(exact: Fraction, value: Quantity, option: str) -> int:
    limit = math.floor(exact)
    if limit < 1:
        part = f", or a percentage: {option}={100 * value:g}%" if isinstance(value, float) else ""
        raise UsageError(f"{option}={value}: it comes to less than 1; state a larger limit{part}")
    return limit


def _exact(value: Quantity, reference: int | float | None, option: str) -> Fraction:
    """`value` as an exact fraction, so that rounding down does not depend on the last bit of a float."""
    if isinstance(value, Real) and not isinstance(value, bool | int | float):  # a number of numpy
        value = operator.index(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(f"{option}={value}: {_EXPECTED}")
    if not isinstance(value, str):
        if not 0 < value < math.inf:
            raise UsageError(f"{option}={value}: {_EXPECTED}")
        return Fraction(value)
    match = _QUANTITY.fullmatch(value.strip())
    if match is None:
        raise UsageError(f"{option}={value}: {_EXPECTED}")
    number, suffix = Fraction(match[1]), match[2]
    if suffix != "%" and suffix not in _SUFFIXES:
        raise UsageError(f"{option}={value}: unknown suffix {suffix!r}; {_EXPECTED}")
    if number <= 0:
        raise UsageError(f"{option}={value}: {_EXPECTED}")
    if suffix != "%":
        return number * _SUFFIXES[suffix]
    if reference is None:
        raise UsageError(f"{option}={value}: there is nothing to take a percentage of; state a number")
    return number / 100 * Fraction(reference)
