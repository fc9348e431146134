"""Budget: what a network, and learning it, may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from budgetnet.errors import UsageError

KINDS = ("flops", "params", "train_cost", "latency", "sequential_ops", "mean_flops")
MOST_MACHINES = 1024

_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*([a-zA-Z%]*)", re.ASCII)
_TIMES = {"us": 1, "ms": 10**3, "s": 10**6}
_EXPECTED_TIME = "expected a positive time such as 800us, 2.5ms or 0.1s, or whole microseconds"
_EXPECTED = "expected a positive number such as 580k, 42M, 0.5G or 1e6, or a percentage such as 50%"

Quantity = int | float | str


def parse_quantity(value: Quantity, reference: int | float | None = None, option: str = "quantity") -> int | float:
    """The number that `value` states: an int where it is whole, else a float.

    value: a number, or text: a number, optionally with k, K, M, G, T, P (powers of 1000) or %.
    reference: what a percentage is a percentage of.
    option: the name to use in an error message.
    Raises UsageError for what is not a positive finite number, and for a percentage without a reference.

    >>> parse_quantity("0.5G"), parse_quantity("50%", reference=81)
    (500000000, 40.5)
    """
    exact = _exact(value, reference, option)
    return int(exact) if exact.denominator == 1 else float(exact)


def format_quantity(value: int | float) -> str:
    """Three significant digits with a suffix.

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
    """Upper limits by kind; all that are stated must hold.

    flops: FLOPs (multiply-accumulates) of one image.
    params: number of parameters.
    train_cost: FLOPs summed over every image trained on.
    latency: measured time for one image, text with a unit ("2.5ms"), or a whole number of microseconds.
    sequential_ops: steps of a network of edges on `machines` machines that work side by side; None means 1.
    mean_flops: FLOPs of one image, in the mean over images that leave a network at different exits.

    Each is None (no limit), a number, or text for `parse_quantity`, and is rounded down to a whole number.
    A percentage stays text until `resolve` is told what it is a percentage of.
    Raises UsageError, naming the option, for what `parse_quantity` refuses and for a limit below 1.

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
        """The stated limits by kind. Raises UsageError if one is a percentage that was not resolved."""
        limits = {}
        for kind, value in self._stated.items():
            if not isinstance(value, int):
                raise UsageError(f"budget.{kind}={value} is a percentage: call resolve() with full costs")
            limits[kind] = value
        return limits

    def resolve(self, full: Mapping[str, int | float]) -> Budget:
        """The same budget in whole numbers: percentages of `full`, the full backbone's costs by kind.

        For train_cost, `full` holds the train cost of the baseline; mean_flops is a percentage of the full FLOPs. A
        percentage above 100 is allowed.
        Raises UsageError for a percentage of a kind that `full` does not hold, or that comes to less than 1.
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
        """Whether `costs` (by kind; every stated kind must be there) exceed no limit."""
        return all(costs[kind] <= limit for kind, limit in self.limits.items())

    def room(self, costs: Mapping[str, int | float]) -> dict[str, int | float]:
        """What is left of each limit; negative where it is exceeded."""
        return {kind: limit - costs[kind] for kind, limit in self.limits.items()}

    def used(self, costs: Mapping[str, int | float]) -> dict[str, float]:
        """The used fraction of each limit; above 1 where it is exceeded."""
        return {kind: costs[kind] / limit for kind, limit in self.limits.items()}

    def binding(self, costs: Mapping[str, int | float]) -> str:
        """The kind with the largest used fraction. Raises UsageError if no limit is stated."""
        self.require()
        used = self.used(costs)
        return max(used, key=lambda kind: used[kind])

    def check(self, seed: Mapping[str, int | float], largest: Mapping[str, int | float]) -> None:
        """Raises UsageError, naming every limit, if some can only be missed.

        seed: costs of the seed network, the least that can be had.
        largest: costs of the largest network that growth may reach; its train cost is not looked at, for
        training may always go on longer.
        """
        problems = []
        for kind, limit in self.limits.items():
            if limit < seed[kind]:
                problems.append(
                    f"budget.{kind}={limit:,} is below the {seed[kind]:,} of the seed network:"
                    f" raise it or choose a smaller growth.seed_width"
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
    """Text with a unit of time in whole microseconds."""
    match = _QUANTITY.fullmatch(value.strip().replace("µ", "u")) if isinstance(value, str) else None
    if match is None or match[2] not in _TIMES or Fraction(match[1]) <= 0:
        raise UsageError(f"budget.latency={value}: {_EXPECTED_TIME}")
    return _whole(Fraction(match[1]) * _TIMES[match[2]], value, "budget.latency")


def _short(kind: str, value: int | float) -> str:
    return amount(kind, value) if kind == "latency" else format_quantity(value)


def amount(kind: str, value: int | float) -> str:
    """A cost or a limit in full, for messages: "1,164,556", or "2,500us" of latency."""
    return f"{value:,}{'us' if kind == 'latency' else ''}"


def _limit(value: Quantity, option: str) -> int | str:
    """`value` as a whole number, or as clean text if it is a percentage."""
    if isinstance(value, str) and value.strip().endswith("%"):
        _exact(value, 1, option)
        return value.replace(" ", "")
    return _whole(_exact(value, None, option), value, option)


def _whole(exact: Fraction, value: Quantity, option: str) -> int:
    limit = math.floor(exact)
    if limit < 1:
        raise UsageError(f"{option}={value}: it comes to less than 1; state a larger limit")
    return limit


def _exact(value: Quantity, reference: int | float | None, option: str) -> Fraction:
    """`value` without rounding: the floor of a limit must not depend on a float's last bit."""
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
