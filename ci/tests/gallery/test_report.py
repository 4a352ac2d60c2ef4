"""The report of a plan: what it says, that nothing in it is taken for markup, and how it behaves in a real browser."""

import base64
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from setuptools import Distribution

from core.data.lists import ListDataset
from core.files import ROOT
from core.gallery.planning.plan import Cost, Flip, Plan, Road, SampleFacts, Shown
from core.gallery.planning.report import (
    TEMPLATES,
    format_bytes,
    format_duration,
    format_far,
    format_percent,
    format_points,
    write_report,
)
from core.gallery.planning.report_charts import draw_curves, draw_forest
from core.gallery.store import Version

EVIL = "<script>window.evil=1</script>\"'><img src=x onerror=window.evil=2>&amp;"
"""As a name, an identity, a path, a reason."""
SHARES = [round(0.1 * i, 1) for i in range(11)]
FARS = ("far=1e-02", "far=1e-03", "far=1e-04")
GALLERY = ("/data/people gallery",)
FOLDER = "/data/plans/may"
SIZE = 24
MAPPED = 1_280_000_000


def road(top1: float, nfr: float, pfr: float, images_to_embed: int = 0) -> Road:
    return Road(top1, 0.011, nfr, pfr, dict(zip(FARS, (0.31, 0.42, None))), images_to_embed)


def curve(first: float, bend: float) -> dict[str, list[float]]:
    top1 = [first + (0.837 - first) * share**bend for share in SHARES]
    return {"top1": top1, "nfr": [0.04] * 10 + [0.03], "pfr": [0.3] * 11, "auc": [float(np.trapezoid(top1, SHARES))]}


def flip(row: int, identity: str) -> Flip:
    """Query `row`; its wrong hit is the row after it, the right one the row after that."""
    right = (row + 2, f"face_{row + 2}.jpg", identity)
    wrong = Shown(row + 1, f"face_{row + 1}.jpg", f"another-{row}", 0.61, math.log(2e-5))
    query = (row, f"face_{row}.jpg", identity)
    return Flip("gallery_map", *query, Shown(*right, 0.55, math.log(4e-4)), wrong, Shown(*right, 0.40, math.log(3e-3)))


def made_plan(identity: str = "person 7") -> Plan:
    orders = {"predicted_error": 0.6, "random": 1.0, "class_distance": 0.8, "oracle": 0.45}
    realised = {"far": 0.0012, "tar": 0.591, "impostors": 48_000}
    kept = {"far_at_old": 0.00002, "tar_at_old": 0.073}
    return Plan(
        old=Version("a" * 64, "iresnet18 of 2021", 256, "work_dirs/old"),
        new=Version("b" * 64, "iresnet50 of 2024", 256, "work_dirs/new model"),
        sample=SampleFacts(412, 3_204, True, 180, 900, ""),
        roads={
            "stay": road(0.544, 0.0, 0.0),
            "direct": None,
            "query_map": road(0.653, 0.059, 0.168),
            "gallery_map": road(0.763, 0.037, 0.256),
            "side_by_side": road(0.5441, 0.0, 0.0),
            "full_backfill": road(0.837, 0.029, 0.322, 1_250_000),
        },
        impossible={"direct": "old and new vectors have nothing in common: their cosines do not tell people apart."},
        comparisons={
            name: {"stay": {"difference": difference, "std": deviation}}
            for name, difference, deviation in (
                ("stay", 0.0, 0.0),
                ("query_map", 0.109, 0.012),
                ("gallery_map", 0.219, 0.012),
                ("side_by_side", 0.0, 0.0),
                ("full_backfill", 0.293, 0.012),
            )
        },
        recommendation="gallery_map",
        reason="The mapped gallery finds 76.3 % at once, without embedding one image: three quarters of all that a "
        "full backfill gives. It beats the old model by 18 deviations on identities that the map has not seen.",
        order="predicted_error",
        shares=SHARES,
        curves={
            "query_map": {name: curve(0.653, bend) for name, bend in orders.items() if name != "class_distance"},
            "gallery_map": {name: curve(0.763, bend) for name, bend in orders.items()},
            "side_by_side": {name: curve(0.544, bend) for name, bend in orders.items()},
        },
        maps={"gallery_map": {"kind": "ridge", "fingerprint": "c" * 64, "tried": {"ridge": 0.763, "procrustes": 0.66}}},
        calibrations={},
        realised={
            pair: {far: realised | ({} if pair == "old/old" else kept) for far in FARS[:2]}
            | {FARS[2]: dict.fromkeys(("far", "tar", "far_at_old", "tar_at_old")) | {"impostors": 48_000}}
            for pair in ("old/old", "new/new", "new/gallery_map", "query_map/old")
        },
        flips=[flip(row, identity) for row in range(6)],
        cost=Cost(
            1_250_000,
            415.0,
            1_250_000 / 415 / 3600,
            "measured here on 512 of the sample's images, with reading, on one core",
            {"stay": 0, "query_map": 0, "gallery_map": MAPPED, "side_by_side": 0, "full_backfill": MAPPED},
            dict.fromkeys(("stay", "query_map", "side_by_side", "full_backfill"), 2_560_000_000)
            | {"gallery_map": 3_840_000_000},
        ),
        seed=0,
        query_map=None,
        gallery_map=None,
    )  # fmt: skip


def too_small_plan() -> Plan:
    plan = made_plan()
    facts = SampleFacts(
        31, 96, False, 180, 900, "With 31 identities a difference of 5 points cannot be told from chance."
    )
    return replace(plan, sample=facts, recommendation="stay", reason="31 identities are too few.", flips=[])


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> ListDataset:
    """Eight images of flat colours, of which row 3 is damaged and row 4 goes missing after it was listed."""
    folder = tmp_path_factory.mktemp("faces")
    for row in range(8):
        face = np.zeros((SIZE, SIZE, 3), np.uint8)
        face[...] = 30 * row
        face[4:12, 4 + row : 14 + row] = (220, 40 * (row % 5), 90)
        (folder / f"face_{row}.jpg").write_bytes(simplejpeg.encode_jpeg(face, 95, "RGB", "444"))
    (folder / "list.txt").write_text("".join(f"face_{row}.jpg {row}\n" for row in range(8)))
    dataset = ListDataset(folder / "list.txt", image_size=SIZE)
    (folder / "face_3.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "face_4.jpg").unlink()
    return dataset


class Page(HTMLParser):
    """Text of a page, its tags, and their attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] in ("style", "script") and self.lasttag in ("style", "script"):
            return
        self.texts.append(data)


def report(folder: Path, plan: Plan, images: ListDataset | None = None, gallery=GALLERY) -> Page:
    write_report(plan, folder / "report.html", gallery, FOLDER, images)
    return Page(folder / "report.html")


def test_says_what_why_what_it_costs_and_what_it_gains(tmp_path, sample):
    page = report(tmp_path, made_plan(), sample)
    for words in (
        "Map the stored vectors to the new model's space",
        "three quarters of all that a full backfill gives",
        "54.4 → 76.3 %",
        "before ± 1.1, after ± 1.1",
        "+21.9 ± 1.2 points",
        "No image has to be embedded; 1.3 GB of vectors to write",
        "1,250,000 images, 50 min at 415 images/s; at most 3.8 GB of vectors at once",
        "Not possible: old and new vectors have nothing in common: their cosines do not tell people apart.",
        "412; 180 are needed",
        "ridge, the best of ridge 76.3 %, procrustes 66.0 %",
    ):
        assert words in page.text, words


def test_thresholds_stand_beside_what_they_realise(tmp_path):
    page = report(tmp_path, made_plan())
    assert (
        "Stay 48,000 pairs of two identities 1e-2 0.310 1.2e-3 59.1 – – 1e-3 0.420 1.2e-3 59.1 – – Query" in page.text
    )
    assert (
        "Gallery map 48,000 pairs of two identities 1e-2 0.310 1.2e-3 59.1 2e-5 7.3 1e-3 0.420 1.2e-3 59.1 2e-5 7.3"
        in page.text
    )
    assert "Side by side 48,000" not in page.text  # two kinds of scores have no threshold in common


def test_commands_can_be_typed_as_they_stand(tmp_path):
    page = report(tmp_path, made_plan(), gallery=("people", "--store", "milvus", "--uri", "tcp:host a"))
    place = "people --store milvus --uri 'tcp:host a'"
    for command in (
        f"python tools/gallery.py backfill {place} --plan /data/plans/may",
        f"python tools/gallery.py search {place} --queries QUERIES.npy --model 'work_dirs/new model' -k 10",
        f"python tools/gallery.py commit {place}",
        f"python tools/gallery.py rollback {place}",
    ):
        assert command in page.text
    assert "python tools/gallery.py backfill '/data/people gallery' --plan" in report(tmp_path, made_plan()).text


def test_a_sample_that_is_too_small_is_said_first_with_the_number_needed(tmp_path):
    page = report(tmp_path, too_small_plan())
    for words in (
        "No recommendation yet The sample is too small to recommend a road 31 identities are too few.",
        "31 measured, 180 needed",
        "96 given, 900 needed",
        "a difference of 5 points cannot be told from chance",
        "Measure again, on a larger sample python tools/gallery.py plan '/data/people gallery' --new",
    ):
        assert words in page.text, words
    assert "Recommended" not in page.text and "gallery.py backfill" not in page.text


def test_pictures_are_the_images_of_the_rows_and_a_bad_one_is_a_box_with_its_path(tmp_path, sample):
    page = report(tmp_path, made_plan(), sample)
    found = [attrs for tag, attrs in page.tags if tag == "img"]
    kinds = {"Query": 0, "Wrong hit": 1, "Right one": 2}
    expected = [(row, kind) for row in range(6) for kind, after in kinds.items() if row + after not in (3, 4)]
    assert len(found) == len(expected) == 12
    for attrs, (row, kind) in zip(found, expected):
        assert attrs["alt"].startswith(kind + ": ")
        data = base64.b64decode(attrs["src"].removeprefix("data:image/jpeg;base64,"))
        picture = simplejpeg.decode_jpeg(data).astype(int)
        original = sample.read(np.array([row + kinds[kind]]))["image"][0]
        assert abs(picture - original).mean() < 6
        assert abs(picture[-2, 2] - 30 * (row + kinds[kind])).max() < 12  # the grey of its row, and of no other
    assert page.text.count("not readable: face_3.jpg") == page.text.count("not readable: face_4.jpg") == 3


def test_without_images_there_are_rows_in_place_of_pictures(tmp_path):
    page = report(tmp_path, made_plan())
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "The sample came as vectors, so there are no pictures" in page.text
    assert "Right one person 7 row 7" in page.text


def test_no_text_of_the_user_becomes_markup(tmp_path, sample):
    plan = made_plan(EVIL)
    plan = replace(
        plan,
        old=Version("a", EVIL, 4),
        new=Version("b", EVIL, 4, EVIL),
        reason=EVIL,
        impossible={"direct": EVIL},
        maps={"gallery_map": {"kind": EVIL, "fingerprint": "c", "tried": {EVIL: 0.5}}},
        sample=replace(plan.sample, missing=EVIL),
        cost=replace(plan.cost, how=EVIL),
        order=EVIL,
        curves={name: {EVIL: orders["random"]} | orders for name, orders in plan.curves.items()},
        flips=[replace(flip(3, EVIL), wrong=replace(plan.flips[0].wrong, row=4, name=EVIL, identity=EVIL))],
    )
    write_report(plan, tmp_path / "report.html", (EVIL,), EVIL, sample)
    page = Page(tmp_path / "report.html")
    plain = report(tmp_path, replace(made_plan(), flips=[flip(3, "x")]), sample)
    for tag in ("script", "img", "style", "link", "iframe"):
        count = sum(each == tag for each, _ in page.tags)
        assert count == sum(each == tag for each, _ in plain.tags), tag
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert page.text.count("<script>window.evil=1</script>") >= 15  # the parser gives it back as text


def test_names_that_are_no_text_are_shown_by_their_bytes(tmp_path):
    page = report(tmp_path, replace(made_plan("person \udcff"), reason="a\udce9b"))
    assert "Search for person \\udcff" in page.text and "a\\udce9b" in page.text


@pytest.mark.parametrize("plan", [made_plan(), too_small_plan()])
def test_the_page_refers_to_nothing_outside_itself(tmp_path, sample, plan):
    page = report(tmp_path, plan, sample)
    assert not re.search(r"https?:|@import|url\(", page.source, re.IGNORECASE)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    for _, attrs in page.tags:
        assert (attrs.get("src") or "data:").startswith("data:")
        assert (attrs.get("href") or "#").startswith("#")
        assert (attrs.get("href") or "#advice")[1:] in ids
    assert len(page.source) < 200_000


@pytest.mark.parametrize("recommendation", ["stay", "direct", "query_map", "side_by_side", "full_backfill"])
def test_every_road_can_be_the_recommended_one(tmp_path, recommendation):
    plan = made_plan()
    roads = plan.roads | {"direct": road(0.62, 0.05, 0.1)}
    realised = plan.realised | {"new/old": plan.realised["new/new"]}
    page = report(tmp_path, replace(plan, recommendation=recommendation, roads=roads, flips=[], realised=realised))
    assert page.text.count(" recommended ") >= 1
    (chosen,) = [attrs for tag, attrs in page.tags if tag == "tr" and "chosen" in (attrs.get("class") or "")]
    assert chosen["data-road"] == recommendation


def test_a_plan_of_vectors_alone_has_no_full_cost_and_may_have_no_curve(tmp_path):
    plan = made_plan()
    cost = replace(plan.cost, images_per_second=None, hours=None, how="not measured: there are no images")
    roads = {name: plan.roads[name] if name in ("stay", "full_backfill") else None for name in plan.roads}
    unknown = {far: {"far": None, "tar": None, "impostors": 6} for far in FARS}
    nothing = {"old/old": unknown, "new/new": unknown}
    page = report(
        tmp_path,
        replace(
            plan,
            cost=cost,
            roads=roads,
            impossible=dict.fromkeys(roads, "no pairs"),
            recommendation="full_backfill",
            curves={},
            realised=nothing,
        ),
    )
    assert "not measured: there are no images" in page.text and "time not measured" in page.text
    assert "The sample has too few identities to set a threshold." in page.text
    assert "While the gallery is embedded again" not in page.text


def test_a_plan_without_new_vectors_of_the_whole_sample_says_so(tmp_path):
    roads = made_plan().roads | {"full_backfill": None}
    page = report(
        tmp_path, replace(made_plan(), roads=roads, impossible=made_plan().impossible | {"full_backfill": "no images"})
    )
    assert "Not possible: no images" in page.text and "When all is embedded again" not in page.text


def test_charts_put_the_rates_where_their_axis_says():
    charts = draw_curves(made_plan())
    assert [chart.road for chart in charts] == ["gallery_map", "query_map", "side_by_side"]
    assert [line.order for line in charts[0].lines] == ["predicted_error", "class_distance", "random", "oracle"]
    (low_y, low), (high_y, high) = charts[0].ticks[0], charts[0].ticks[-1]
    assert (low_y, low, high_y, high) == (100, 0.5, 0, 0.9)
    for chart in charts:
        assert chart.ticks == charts[0].ticks
        for line in chart.lines:
            heights = [100 - 100 * (rate - 0.5) / 0.4 for rate in line.values]
            np.testing.assert_allclose(line.points, [*zip(np.multiply(SHARES, 100), heights)])
    assert charts[0].today == pytest.approx(89) and charts[0].complete == pytest.approx(15.75)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((0.0, 0.0), [0, 0.001]),
        ((1.0, 1.0), [0.999, 1]),
        ((0.0, 1.0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((0.981, 0.999), None),
    ],
)
def test_axes_are_round_and_stay_within_all_and_nothing(rates, expected):
    result = [replace(road(rate, 0, 0), top1_std=0.0) for rate in rates]
    roads = dict.fromkeys(made_plan().roads) | {"stay": result[0], "full_backfill": result[1]}
    forest = draw_forest(replace(made_plan(), roads=roads))
    ticks = [tick for _, tick in forest.ticks]
    assert expected is None or ticks == pytest.approx(expected)
    assert ticks[0] >= 0 and ticks[-1] <= 1 and ticks[0] <= min(rates) and ticks[-1] >= max(rates)
    assert 2 <= len(ticks) <= 6
    assert all(0 <= place <= 100 for mark in forest.marks for place in (mark.low, mark.at, mark.high))


def test_numbers_are_written_for_people():
    assert [format_bytes(n) for n in (0, 999, 1_500, 1_280_000_000, 24e9, None)] == [
        "0 B", "999 B", "1.5 kB", "1.3 GB", "24 GB", "–",
    ]  # fmt: skip
    assert [format_duration(h) for h in (0, 1 / 120, 0.5, 1, 18.2, 96, math.nan)] == [
        "0 s", "30 s", "30 min", "1 h", "18 h", "4 days", "–",
    ]  # fmt: skip
    assert [format_far(f) for f in (1e-3, 1.24e-4, 0.0, 1.0, None)] == ["1e-3", "1.2e-4", "0", "1e0", "–"]
    assert [format_percent(r) for r in (0.5, 0.03456, math.nan, None)] == ["50.0", "3.5", "–", "–"]
    assert [format_points(r) for r in (0.219, -0.02)] == ["+21.9", "−2.0"]


def test_templates_are_part_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files([str(ROOT / "pyproject.toml")])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {
        file
        for package, _, _, files in build.get_data_files_without_manifest()
        if package == "core.gallery.planning"
        for file in files
    }
    assert {path.relative_to(TEMPLATES.parent).as_posix() for path in TEMPLATES.iterdir()} <= packed
    assert len(packed) >= 3


CONTRAST = """
const parse = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1];
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const behind = (element) => {
  const colour = parse(getComputedStyle(element).backgroundColor);
  return colour[3] > 0 ? colour : behind(element.parentElement);
};
const poor = [];
for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode();) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const both = [light(parse(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
  const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  if (!(contrast >= 4.5)) poor.push([walker.currentNode.data.trim(), contrast]);
}
return poor;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    """Debian's chromium without a window; its process and its driver's end with the module."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(paths):
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, sample, tmp_path_factory) -> Path:
    """The page of a plan with hostile names, opened from disk."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(made_plan(), path, GALLERY, FOLDER, sample)
    return path


def show(browser, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    browser.get(path.as_uri())


def order_of_roads(browser) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('#roads tbody tr')].map(r => r.dataset.road)")


def test_opens_without_an_error_or_a_request(browser, opened):
    show(browser, opened)
    assert browser.title == "Upgrade plan: /data/people gallery"
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    sizes = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth)")
    assert sizes == [SIZE] * 12


def test_hostile_names_do_not_run(browser, sample, tmp_path):
    plan = replace(made_plan(EVIL), reason=EVIL, order=EVIL, curves={"query_map": {EVIL: curve(0.6, 1)}})
    write_report(plan, tmp_path / "report.html", (EVIL,), EVIL, sample)
    show(browser, tmp_path / "report.html")
    browser.execute_script("document.querySelector('.area').focus()")
    assert EVIL in browser.execute_script("return document.querySelector('.tip').textContent")
    assert browser.execute_script("return window.evil") is None
    assert browser.get_log("browser") == []


def test_headings_sort_by_click_and_by_key_and_say_so(browser, opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, opened)
    headings = browser.find_elements(By.CSS_SELECTOR, "#roads thead th")
    buttons = [heading.find_element(By.TAG_NAME, "button") for heading in headings]
    assert order_of_roads(browser)[:2] == ["stay", "direct"]
    by_rank1 = ["full_backfill", "gallery_map", "query_map", "side_by_side", "stay"]
    buttons[1].click()
    assert order_of_roads(browser) == [*by_rank1, "direct"]  # the impossible one last, either way
    assert [heading.get_attribute("aria-sort") for heading in headings] == ["none", "descending"] + ["none"] * 5
    buttons[1].send_keys(Keys.ENTER)
    assert order_of_roads(browser) == [*by_rank1[::-1], "direct"]
    assert headings[1].get_attribute("aria-sort") == "ascending"
    buttons[0].send_keys(Keys.SPACE)
    assert order_of_roads(browser) == ["direct", "full_backfill", "gallery_map", "query_map", "side_by_side", "stay"]
    buttons[3].click()
    assert order_of_roads(browser)[2:] == ["full_backfill", "gallery_map", "query_map", "direct"]
    aligned = browser.execute_script(
        "return [...document.querySelectorAll('#roads td.num, #roads th.num')].map(e => getComputedStyle(e).textAlign)"
    )
    assert len(aligned) == 36 and set(aligned) == {"right"}


def test_the_curves_answer_to_pointer_and_keys(browser, opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, opened)
    chart = browser.find_element(By.CSS_SELECTOR, ".chart[data-road=gallery_map]")
    area, tip = chart.find_element(By.CLASS_NAME, "area"), chart.find_element(By.CLASS_NAME, "tip")
    assert not tip.is_displayed()
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    ActionChains(browser, duration=0).move_to_element(area).perform()
    assert tip.is_displayed() and tip.text.startswith("50 % embedded again\npredicted error\n81.2 %")
    box, place = tip.rect, area.rect
    assert place["x"] <= box["x"] and box["x"] + box["width"] <= place["x"] + place["width"] + 1
    ActionChains(browser, duration=0).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert not tip.is_displayed()
    area.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert tip.is_displayed() and tip.text.startswith("10 % embedded again")
    assert area.get_attribute("aria-valuetext").startswith("10 % embedded again: predicted error 78.2 %")
    area.send_keys(Keys.END)
    assert area.get_attribute("aria-valuenow") == "10" and "83.7 %" in tip.text
    area.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


@pytest.mark.parametrize("plan", [made_plan(), too_small_plan()], ids=["enough", "too small"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_telephone_and_can_be_read_on_it(browser, tmp_path, sample, plan, scheme):
    write_report(plan, tmp_path / "report.html", (GALLERY[0] + "-very-long-name" * 12,), FOLDER, sample)
    show(browser, tmp_path / "report.html", width=360, height=740, scheme=scheme)
    width, fits = browser.execute_script("const e = document.scrollingElement; return [e.clientWidth, e.scrollWidth]")
    assert width == fits == 360
    assert browser.execute_script(CONTRAST) == []
    small = "[...document.querySelectorAll('body *')].filter(e => parseFloat(getComputedStyle(e).fontSize) < 12)"
    assert browser.execute_script(f"return {small}.map(e => e.outerHTML)") == []
    inside = browser.execute_script(
        "const e = document.querySelector('#roads .scroll'); return e.scrollWidth > e.clientWidth"
    )
    assert inside  # the table moves in its box
    page, ink = browser.execute_script("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    values = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (page, ink)]
    assert (values[0] < values[1]) == (scheme == "dark")


def test_a_desk_shows_the_advice_at_once_and_the_page_can_be_pictured(browser, opened, tmp_path):
    for scheme in ("light", "dark"):
        show(browser, opened, scheme=scheme)
        assert browser.execute_script(CONTRAST) == []
        bottom = browser.execute_script("return document.querySelector('#advice').getBoundingClientRect().bottom")
        assert bottom <= 900
        assert browser.execute_script("const e = document.scrollingElement; return e.scrollWidth - e.clientWidth") == 0
        data = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        assert base64.b64decode(data["data"]).startswith(b"\x89PNG") and len(data["data"]) > 30_000
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")
