"""Every JSON file that a program reads, damaged in every way: one line that names it, in little memory."""

import json
import resource

import pytest

from core.builtin.dataset_folder import DESCRIPTION, check_replaceable
from core.data.image_export import ORIGIN, export_images
from core.data.records import RecordDataset
from core.embeddings.store import EmbeddingStore
from core.engine.checkpoint import read_position
from core.engine.run_folder import MetricsLog, RunFolder
from core.errors import UserError
from core.evaluation.gldv2 import read_gldv2
from core.evaluation.results import read_evaluations
from core.gallery.planning.plan import Plan
from core.json_files import MOST_BYTES, read_json
from core.models.map_run import read_map_run
from core.models.maps import load_map
from core.models.run_config import read_run_config

DAMAGE = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a long whole number": b'{"step": ' + b"9" * 10_000 + b"}",
    "no number": b'{"step": NaN}',
    "infinite": b'{"step": -Infinity}',
    "beyond float64": b'{"step": 1e999}',
    "a whole number beyond float64": b'{"step": ' + b"9" * 400 + b"}",
    "cut short": b'{"step": 1',
    "two values": b"{} {}",
    "empty": b"",
    "not UTF-8": b'{"step": "\xff\xfe"}',
    "UTF-16": '{"step": 1}'.encode("utf-16"),
    "NUL bytes": b"\0" * 100,
    "a list": b"[1, 2]",
    "a text": b'"step"',
    "a number": b"1",
    "null": b"null",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line_with_the_file(tmp_path, damage):
    path = tmp_path / "x.json"
    path.write_bytes(DAMAGE[damage])
    with pytest.raises(UserError) as caught:
        read_json(path, "plan of a test", "make it again")
    line = str(caught.value)
    assert line.startswith(f"{path} is not a readable plan of a test: ") and line.endswith("; make it again")
    assert len(line) < 800 and "\n" not in line


def test_what_json_allows_is_read_as_python_reads_it(tmp_path):
    content = {"a": [1, -2.5, 1e300, 2**80, True, None, "ä\0"], "b": {"c": {}}, "": []}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    assert read_json(path, "file") == content
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert read_json(path, "file") == content


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    with pytest.raises(UserError, match=r"results not found: .*x\.json"):
        read_json(tmp_path / "x.json", "results")
    with pytest.raises(UserError, match="results not found: .* is a folder"):
        read_json(tmp_path, "results")


@pytest.mark.parametrize("source", ["sparse", "endless"])
def test_gigabytes_are_refused_unread(tmp_path, source):
    path = tmp_path / "x.json"
    if source == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to("/dev/zero")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="more than 32 MB" if source == "sparse" else "it is a device or a pipe"):
        read_json(path, "file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * MOST_BYTES >> 10


def read_truth(path):
    for name in ("gldv2_queries.txt", "gldv2_index.txt"):
        (path.parent / name).write_text("a.jpg\n")
    return read_gldv2(path.parent)


READERS = {
    "results.json": read_evaluations,
    "gldv2_ground_truth.json": read_truth,
    "position.json": lambda path: read_position(path.parent),
    "config.json": lambda path: read_run_config(path.parent),
    "map/config.json": lambda path: load_map(path.parent),
    "plan.json": lambda path: Plan.load(path.parent),
    "store.json": lambda path: EmbeddingStore.open(path.parent),
}
"""Of every kind of JSON file that is needed."""


@pytest.mark.parametrize("name", READERS)
def test_every_reader_tells_damage_in_one_line_with_the_file(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    others = [b'{"map": [], "models": 3, "task": 1}', b'{"usage": [[]], "positives": 7}', b"{}"]
    for content in [*DAMAGE.values(), *others]:
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            READERS[name](path)
        assert str(path) in str(caught.value) or str(path.parent) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_notes_of_earlier_runs_that_are_damaged_count_as_none(tmp_path, tiny_records, damage):
    for name in ("config.json", DESCRIPTION, ORIGIN):
        (tmp_path / name).write_bytes(DAMAGE[damage])
    assert RunFolder(tmp_path).read_config() == {}
    with pytest.raises(UserError, match=r"config\.json is not a readable"):
        read_map_run(tmp_path)
    with pytest.raises(UserError, match="other files"):
        export_images(RecordDataset(tiny_records), tmp_path)
    out = tmp_path / "data"
    out.mkdir()
    (out / DESCRIPTION).write_bytes(DAMAGE[damage])
    with pytest.raises(UserError, match="of kind unknown"):
        check_replaceable(out, "glyphs")


def test_damaged_lines_of_the_metrics_are_dropped(tmp_path):
    kept = '{"step": 1, "loss": 2.0}'
    lines = [kept.encode(), *DAMAGE.values(), b'{"step": "x"}', b"[3]"]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    MetricsLog(RunFolder(tmp_path), 5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == kept + "\n"
