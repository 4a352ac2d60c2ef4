"""Plans of made-up upgrades beside the truth: is the road that a plan takes the best one, and do its thresholds hold?

    python -m ci.benchmarks gallery_plan                20 cases, some minutes
    python -m ci.benchmarks gallery_plan --cases 6 --population 500

Two models see images of people through views that have more or less in common, with more or less noise, with vectors
of equal sizes or not, made compatible or not. A plan is made on a sample of some people; the truth is measured on
others, with the maps and the thresholds that the plan hands on: rank-1 of all roads in galleries of as many people as
the sample has and in one of the whole population, and the false accept rate of all its impostor pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ci.benchmarks.harness.bench import Bench
from ci.benchmarks.harness.vectors import unit
from core.gallery.planning.cost import Holdings
from core.gallery.planning.make_plan import make_plan
from core.gallery.planning.pair_scores import Plain
from core.gallery.planning.plan import Plan
from core.gallery.planning.recommendation import FREE
from core.gallery.planning.sample import Sample
from core.gallery.planning.sample_calibration import PAIRS, impostor_pairs
from core.gallery.planning.trials import Draws, search_draws
from core.gallery.store import Version

QUICK = {"cases": 1, "population": 60}
LATENT = 48
"""Numbers that describe an image."""
IMAGES = 4
WITHIN = 0.4
"""Deviation of the images of a person; people differ by 1."""
FAIR = 0.02
"""By how much another road may be better than the one that a plan takes."""
RATIO = 1.5
"""Between a FAR that is wanted and what is found on other people."""
Vectors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """How two models see, and how large the sample is."""

    shared: float
    """Part of what the old model looks at that the new one looks at too."""
    old_noise: float
    new_noise: float
    compatible: float
    """Weight of the old model's view, seen with the new model's noise, in the new vectors; 0: trained independently."""
    sizes: tuple[int, int]
    people: int
    """In the sample, with four images each."""


def make_cases(count: int) -> list[Case]:
    """Every degree of likeness, in turn with each kind of sample and models."""
    rng = np.random.default_rng(11)
    cases = []
    for number in range(count):
        compatible = (0.0, 0.0, 0.6, 0.0, 1.0)[number % 5]
        sizes = (64, 64) if compatible else ((64, 64), (64, 96), (128, 64), (96, 96))[number % 4]
        cases.append(
            Case(
                shared=(number * 7 % 20) / 19,
                old_noise=float(rng.uniform(0.2, 1.2)),
                new_noise=float(rng.uniform(0.1, 0.9)),
                compatible=compatible,
                sizes=sizes,
                people=(60, 150, 300, 600)[number // 5 % 4],
            )
        )
    return cases


def views(case: Case, seed: int) -> Callable[[int], tuple[Vectors, np.ndarray]]:
    """A function that draws people: the vectors of both models of their images, and whose they are."""
    rng = np.random.default_rng(seed)
    looked_at = LATENT // 2
    own = round(looked_at * (1 - case.shared))
    networks = [network(rng, looked_at, size) for size in (*case.sizes, case.sizes[0])]

    def draw(people: int) -> tuple[Vectors, np.ndarray]:
        identities = np.repeat(np.arange(people), IMAGES)
        images = rng.standard_normal((people, LATENT))[identities] + WITHIN * rng.standard_normal(
            (len(identities), LATENT)
        )
        old = networks[0](images[:, :looked_at] + case.old_noise * noise(rng, len(images), looked_at))
        clear = case.new_noise * noise(rng, len(images), looked_at)
        new = networks[1](images[:, own : own + looked_at] + clear)
        if case.compatible:
            new = new + case.compatible * networks[0](images[:, :looked_at] + clear)
        return {"old": old, "new": new}, identities

    return draw


def network(rng: np.random.Generator, inputs: int, outputs: int) -> Callable[[np.ndarray], np.ndarray]:
    """A random one with one hidden layer."""
    inner, outer = rng.standard_normal((inputs, 128)) / np.sqrt(inputs), rng.standard_normal((128, outputs))
    return lambda seen: (np.tanh(seen @ inner) @ outer / 11).astype(np.float32)


def noise(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    return rng.standard_normal((count, size))


def plan_for(vectors: Vectors, identities: np.ndarray, seed: int) -> Plan:
    sample = Sample.of(vectors["old"], vectors["new"], list(map(str, identities)))
    versions = [Version(name, name, vectors[name].shape[1]) for name in ("old", "new")]
    return make_plan(sample, *versions, Holdings(10_000, 10_000, 4 * 10_000 * versions[0].size), seed=seed)


def with_maps(plan: Plan, vectors: Vectors) -> Vectors:
    """Unit vectors of other people, and what the plan's maps make of them."""
    found = {name: unit(each) for name, each in vectors.items()}
    if plan.query_map is not None and plan.gallery_map is not None:
        found |= {"query_map": plan.query_map(found["new"]), "gallery_map": plan.gallery_map(found["old"])}
    return found


def true_top1(vectors: Vectors, identities: np.ndarray, pair: str, people: int) -> float:
    """Rank-1 in galleries of so many people each, the mean over all that the population fills and two draws."""
    queries, gallery = (vectors[name] for name in pair.split("/"))
    rates = []
    for start in range(0, identities.max() + 1 - people + 1, people):
        rows = np.flatnonzero((identities >= start) & (identities < start + people))
        draws = Draws.of(identities[rows] - start, 2, start)
        rates.append(draws.rate(search_draws(Plain(queries[rows], gallery[rows]), draws).is_right))
    return float(np.mean(rates))


def true_far(vectors: Vectors, identities: np.ndarray, pair: str, thresholds: np.ndarray) -> np.ndarray:
    """Share of all impostor pairs of two thousand images that reach each threshold."""
    queries, gallery = (vectors[name][:2000] for name in pair.split("/"))
    scores = np.sort((queries @ gallery.T)[identities[:2000, None] != identities[:2000]])
    return (len(scores) - np.searchsorted(scores, thresholds)) / len(scores)


@dataclass(frozen=True)
class Outcome:
    """Of a case."""

    plan: Plan
    sample_size: dict[str, float]
    """True top1 by road in galleries of the sample's size."""
    large: dict[str, float]
    """In one of the whole population."""
    ratios: list[float]
    """Found over wanted FAR, for all roads and FARs that the sample can tell with 100 impostor pairs."""

    def errors(self, roads: Sequence[str]) -> list[float]:
        """Of top1 by the plan, in its deviations."""
        measured = {name: self.plan.roads[name] for name in roads}
        return [
            (road.top1 - self.sample_size[name]) / max(road.top1_std, 1e-3)
            for name, road in measured.items()
            if road is not None
        ]

    def loss(self, truth: dict[str, float]) -> float:
        """By how much the best road without embedding first is better than the one that was taken."""
        return max(truth[road] for road in FREE if road in truth) - truth[self.plan.recommendation]


def measure(case: Case, population: int, seed: int) -> Outcome:
    draw = views(case, seed)
    sample, of_sample = draw(case.people)
    plan = plan_for(sample, of_sample, seed)
    others, of_others = draw(population)
    vectors = with_maps(plan, others)
    roads = {name: PAIRS[name] for name, road in plan.roads.items() if road is not None}
    truths = [
        {name: true_top1(vectors, of_others, pair, people) for name, pair in roads.items()}
        for people in (case.people, population)
    ]
    ratios = []
    for name, pair in roads.items():
        road = plan.roads[name]
        fars = {f: t for f, t in road.thresholds.items() if t is not None and name != "side_by_side"}
        wanted = np.array([float(far.removeprefix("far=")) for far in fars])
        found = true_far(vectors, of_others, pair, np.array(list(fars.values())))
        ratios += (found / wanted)[wanted * impostor_pairs(of_sample) >= 100].tolist()
    return Outcome(plan, *truths, ratios)


def run(bench: Bench, *, cases: int = 20, population: int = 1200, seed: int = 0) -> None:
    outcomes, rows = [], []
    for number, case in enumerate(make_cases(cases)):
        outcome = measure(case, population, seed + number)
        outcomes.append(outcome)
        rows += [[str(number), *row] for row in described(case, outcome)]
    header = ["case", "shared", "noise", "compatible", "sizes", "people", "order", "road", "plan", "deviation", "true",
              "taken"]  # fmt: skip
    bench.table("Rank-1 in per cent by the plan and true, in galleries of the sample's size", header, rows)
    for line in summary(outcomes):
        bench.note(line)


def described(case: Case, outcome: Outcome) -> list[list[str]]:
    """A row for each road that was measured."""
    plan, facts = outcome.plan, outcome.plan.sample
    people = f"{case.people}" if facts.enough else f"{case.people} of {facts.needed_identities} needed"
    noise = f"{case.old_noise:.1f} {case.new_noise:.1f}"
    how = [f"{case.shared:.2f}", noise, f"{case.compatible:.1f}", "{} {}".format(*case.sizes), people, plan.order]
    return [
        [*how, name, *(f"{100 * rate:.1f}" for rate in (road.top1, road.top1_std, outcome.sample_size[name])),
         "taken" * (name == plan.recommendation)]
        for name, road in plan.roads.items()
        if road is not None and name != "side_by_side"
    ]  # fmt: skip


def summary(outcomes: list[Outcome]) -> Iterator[str]:
    count = len(outcomes)
    for what, losses in (
        ("of the sample's size", [outcome.loss(outcome.sample_size) for outcome in outcomes]),
        ("of the population", [outcome.loss(outcome.large) for outcome in outcomes]),
    ):
        fair = sum(loss <= FAIR for loss in losses)
        yield (
            f"in galleries {what}: within {100 * FAIR:.0f} points of the best road in {fair} of {count} cases, at most "
            f"{100 * max(losses):.1f} below it"
        )
    for what, roads in (
        ("without maps", ("stay", "direct", "full_backfill")),
        ("with maps", ("query_map", "gallery_map")),
    ):
        errors = np.array([error for outcome in outcomes for error in outcome.errors(roads)])
        yield (
            f"errors of top1 {what}, in deviations of the plan: root mean square {np.sqrt((errors**2).mean()):.2f}, "
            f"mean {errors.mean():.2f}"
        )
    ratios = np.concatenate([outcome.ratios for outcome in outcomes])
    within = (np.maximum(ratios, 1 / ratios.clip(min=1e-9)) <= RATIO).sum()
    yield (
        f"FAR on other people within a factor of {RATIO} of the wanted one: {within} of {len(ratios)}; from "
        f"{ratios.min():.2f} to {ratios.max():.2f} times"
    )
    yield f"sample too small in {sum(not outcome.plan.sample.enough for outcome in outcomes)} of {count} cases"
