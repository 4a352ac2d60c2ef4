"""Which road is taken, worked by hand from made-up rates and deviations."""

import pytest

from core.gallery.planning.plan import Road
from core.gallery.planning.recommendation import FEWEST_IDENTITIES, choose_road, explain, judge_sample

ROADS = ("stay", "direct", "query_map", "gallery_map", "full_backfill")


def made(std: float = 0.01, **top1: float | None):
    roads = {
        road: None if top1.get(road) is None else Road(top1[road], std, 0.0, 0.0, {}, 0)
        for road in ("side_by_side", *ROADS)
    }
    known = [road for road in ROADS if roads[road] is not None]
    comparisons = {
        road: {other: {"difference": top1[road] - top1[other], "std": 0.0 if road == other else std} for other in known}
        for road in known
    }
    return roads, comparisons


@pytest.mark.parametrize(
    ("top1", "taken"),
    [
        ({"stay": 0.5, "direct": 0.6, "query_map": 0.7, "gallery_map": 0.8, "full_backfill": 0.9}, "gallery_map"),
        ({"stay": 0.5, "direct": 0.6, "query_map": 0.55, "gallery_map": 0.2, "full_backfill": 0.9}, "direct"),
        ({"stay": 0.7, "direct": None, "query_map": 0.15, "gallery_map": 0.23, "full_backfill": 0.99}, "full_backfill"),
        ({"stay": 0.7, "query_map": 0.705, "full_backfill": 0.8}, "full_backfill"),  # 0.705: within the deviation
        ({"stay": 0.7, "query_map": 0.705, "full_backfill": 0.705}, "stay"),
        ({"stay": 0.7, "query_map": 0.1, "full_backfill": None}, "stay"),
        ({"stay": 0.7}, "stay"),
    ],
)
def test_road(top1, taken):
    roads, comparisons = made(**top1)
    assert choose_road(roads, comparisons).road == taken


def test_clear_differences_need_few_identities_and_close_ones_many():
    roads, comparisons = made(0.05, stay=0.7, query_map=0.2, full_backfill=0.99)
    facts = judge_sample(choose_road(roads, comparisons), 28, 280, 70_000, 1e-3)
    assert facts.enough and facts.needed_identities == FEWEST_IDENTITIES and not facts.missing
    roads, comparisons = made(0.05, stay=0.7, query_map=0.75 + 1e-9, gallery_map=0.74, full_backfill=0.99)
    choice = choose_road(roads, comparisons)
    facts = judge_sample(choice, 28, 280, 70_000, 1e-3)
    assert choice.road == "query_map" and not facts.enough
    wanted = 28 * (0.05 / (0.02 / 1.645)) ** 2  # the deviation falls with the root of the number
    assert facts.needed_identities == pytest.approx(wanted, abs=1)
    assert str(facts.needed_identities) in explain(choice, facts, roads, comparisons, 0.99)


def test_too_few_identities_or_images_are_refused_with_the_number_needed():
    roads, comparisons = made(0.0, stay=0.7, query_map=0.2, full_backfill=0.99)
    choice = choose_road(roads, comparisons)
    facts = judge_sample(choice, 12, 200, 36_000, 1e-3)
    assert not facts.enough and facts.needed_identities == 20 and "12" in facts.missing
    facts = judge_sample(choice, 30, 60, 3_500, 1e-3)
    assert not facts.enough and facts.needed_images == pytest.approx(60 * (10_000 / 3_500) ** 0.5, abs=1)
    assert judge_sample(choice, 30, 60, 3_500, 1e-2).enough


def test_reason_says_what_each_road_gives():
    roads, comparisons = made(stay=0.5, query_map=0.7, full_backfill=0.9)
    choice = choose_road(roads, comparisons)
    text = explain(choice, judge_sample(choice, 100, 1000, 10**6, 1e-3), roads, comparisons, 0.9)
    assert "70.0 %" in text and "50.0 %" in text and "90.0 %" in text and "20.0 points (deviation 1.0)" in text
    roads, comparisons = made(stay=0.7, query_map=0.1, gallery_map=0.2)
    choice = choose_road(roads, comparisons)
    text = explain(choice, judge_sample(choice, 100, 1000, 10**6, 1e-3), roads, comparisons, 0.9)
    assert "mapped gallery, changes it by -50.0 points" in text and "images of its entries are not known" in text
