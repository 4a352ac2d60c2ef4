"""Where the marks of the report's charts lie. The template draws them; positions are per cent of a chart's area.

x runs from the left, y from the top, as in SVG, so that a chart follows the width of the page while its text keeps its
size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.gallery.orders import ORACLE
from core.gallery.planning.plan import Plan, road_of_curve
from core.gallery.upgrade import ROADS

__all__ = ["Chart", "Forest", "Line", "Mark", "draw_curves", "draw_forest", "orders_of"]

MOST_TICKS = 6
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Line:
    """The rank-1 rate of one order over the share that is embedded again."""

    order: str
    points: list[tuple[float, float]]
    values: list[float]
    area: float
    """Under the curve: its mean."""
    worst_nfr: float


@dataclass(frozen=True)
class Chart:
    """The curves of one road."""

    road: str
    lines: list[Line]
    ticks: list[tuple[float, float]]
    """Position y and rate."""
    today: float
    """Position y of old/old."""
    complete: float | None
    """Position y of new/new, if it is known."""


@dataclass(frozen=True)
class Mark:
    """The rank-1 rate of a road, with two deviations to each side."""

    road: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Forest:
    """All roads that can be had, one below another."""

    marks: list[Mark]
    ticks: list[tuple[float, float]]
    """Position x and rate."""
    today: float
    """Position x of the old model's rate."""


def orders_of(plan: Plan) -> list[str]:
    """All orders that a curve was computed for: the plan's own first, the oracle last, the others by name."""
    found = {order for orders in plan.curves.values() for order in orders}
    return sorted(found, key=lambda order: (order != plan.order, order == ORACLE, order))


def draw_curves(plan: Plan) -> list[Chart]:
    """A chart a road, all with one scale: the recommended road's first."""
    stay, full = plan.roads["stay"], plan.roads["full_backfill"]
    today = stay.top1 if stay else math.nan
    complete = full.top1 if full else math.nan
    rates = [rate for orders in plan.curves.values() for curve in orders.values() for rate in curve["top1"]]
    ticks = _ticks([rate for rate in (*rates, today, complete) if math.isfinite(rate)])

    def height(rate: float) -> float:
        return 100 - _position(rate, ticks)

    def line(order: str, curve: dict[str, list[float]]) -> Line:
        points = [(100 * share, height(rate)) for share, rate in zip(plan.shares, curve["top1"])]
        return Line(order, points, curve["top1"], curve["auc"][0], max(curve["nfr"]))

    first = road_of_curve(plan.recommendation)
    return [
        Chart(
            road,
            [line(order, plan.curves[road][order]) for order in orders_of(plan) if order in plan.curves[road]],
            [(height(tick), tick) for tick in ticks],
            height(today),
            height(complete) if full else None,
        )
        for road in sorted(plan.curves, key=lambda road: (road != first, ROADS.index(road)))
    ]


def draw_forest(plan: Plan) -> Forest:
    """The rates of all roads beside the old model's."""
    found = {road: result for road, result in plan.roads.items() if result is not None}
    ends = [
        (result.top1, max(0.0, result.top1 - 2 * result.top1_std), min(1.0, result.top1 + 2 * result.top1_std))
        for result in found.values()
    ]
    ticks = _ticks([rate for each in ends for rate in each])
    marks = [Mark(road, *(_position(rate, ticks) for rate in each)) for road, each in zip(found, ends)]
    today = next((mark.at for mark in marks if mark.road == "stay"), math.nan)
    return Forest(marks, [(_position(tick, ticks), tick) for tick in ticks], today)


def _position(rate: float, ticks: Sequence[float]) -> float:
    return 100 * (rate - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(rates: Sequence[float]) -> list[float]:
    """Round rates in [0, 1], at equal distances, that enclose `rates`."""
    low, high = min(rates, default=0.0), max(rates, default=1.0)

    def enclosing(step: float) -> range:
        first = math.floor(low / step + 1e-9)
        return range(first, max(math.ceil(high / step - 1e-9), first + 1) + 1)

    step = next(step for step in TICKS if len(enclosing(step)) <= MOST_TICKS)
    beyond = int(enclosing(step)[-1] * step > 1 + 1e-9)  # all rates are 1
    return [round((i - beyond) * step, 6) for i in enclosing(step)]
