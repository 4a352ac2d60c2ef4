"""What the demo says of its roads, in words."""

import demo


def _metrics(**top1):
    rates = {"old/old": 0.5, "independent/independent": 0.9, **{road: 0.5 for road in demo.ROADS}}
    rates |= {name.replace("_", "/", 1): rate for name, rate in top1.items()}
    return {pair: {"top1": rate, "nfr": 0.031, "pfr": 0.2} for pair, rate in rates.items()}


def test_each_road_is_judged_by_its_share_of_the_whole_gain():
    text = demo.compare_roads(_metrics(new_old=0.6)).splitlines()
    assert "finds 50.0 % now" in text[0] and "find 90.0 %" in text[0]
    first = next(line for line in text if line.startswith("- "))
    assert first.startswith("- **new/old**")  # the best road comes first
    assert "pays at once: 60.0 % (+10.0, 25 % of the whole gain); 3.1 % of the probes" in first


def test_a_road_that_finds_no_more_than_the_service_does_not_pay():
    text = demo.compare_roads(_metrics(new_old=0.5))
    assert text.count("does not pay: 50.0 % (+0.0)") == len(demo.ROADS)
    worse = demo.compare_roads(_metrics(new_old=0.4))
    assert "does not pay: 40.0 % (-10.0)" in worse and worse.rstrip().splitlines()[-1].startswith("- **new/old**")


def test_there_is_no_share_of_a_gain_where_the_new_model_is_no_better():
    metrics = _metrics(new_old=0.6)
    metrics["independent/independent"]["top1"] = 0.4
    assert "of the whole gain" not in demo.compare_roads(metrics)
