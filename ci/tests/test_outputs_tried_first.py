"""Every program tries its outputs before it opens a model or data, and names the option that it is asked for."""

import errno
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import projection_encoder, write_run_folder

from core.data.records import RecordDataset
from core.embeddings.cache import require_cache
from core.embeddings.extraction import extract_embeddings, require_writable_store
from core.embeddings.statistics import write_once
from core.errors import UserError
from core.images.loader import load_batches


@pytest.fixture
def run(monkeypatch) -> Callable[..., None]:
    """Call a tool's main with words after its name."""

    def run_tool(tool: str, *words: object) -> None:
        monkeypatch.setattr("sys.argv", [f"{tool}.py", *map(str, words)])
        importlib.import_module(tool).main()

    return run_tool


MODEL = ("-m", "/nowhere/model", "--data-path", "/nowhere/data")
TWO = ("--models", "/nowhere/a", "/nowhere/b", "--data-path", "/nowhere/data")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("ijbc_eval", *MODEL, "--out", "/proc/out"), "cannot write /proc/out: No such file or directory"),
        (("ijbc_eval", *MODEL, "--out", "{}/out", "--cache", "/proc/c"), "--cache: cannot write /proc/c: No such"),
        (("ijbc_eval", *MODEL, "--out", "{}/out/deep"), "--out {}/out/deep: its parent is no folder"),
        (("roxford_eval", *MODEL, "--out", "/sys/kernel/out"), "cannot write /sys/kernel/out: "),
        (("roxford_eval", *MODEL, "--out", "{}/file"), "--out {}/file: its parent is no folder, or it is a file"),
        (("compatibility_matrix", *TWO, "--out", "/proc/out"), "cannot write /proc/out: No such file"),
        (("compatibility_matrix", *TWO, "--out", "{}/out", "--cache", "{}/file/c"), "{}/file is no folder"),
        (("extract_features", "-m", "/nowhere", "--rec", "/nowhere", "--out", "/proc/f"), "cannot write /proc/f: "),
        (("export_onnx", "-m", "/nowhere", "-o", "/proc/x.onnx"), "cannot write /proc/x.onnx: No such file"),
        (("export_onnx", "-m", "/nowhere", "-o", "{}/new/x.onnx"), "the folder {}/new of the output x.onnx does not"),
        (("export_onnx", "-m", "/nowhere", "-o", "{}"), "{} is a folder: name a file"),
        (("export_onnx", "-m", "/nowhere", "-o", "/dev/full"), "cannot write /dev/full: it is a device or a pipe"),
        (("make_dataset", "glyphs", "--out", "/proc/data"), "cannot write /proc/data: No such file"),
        (("make_dataset", "orl", "--out", "/proc"), "/proc is the root of a disk, which cannot be replaced"),
        (("make_dataset", "folder", "--src", "/nowhere", "--out", "{}/file/x"), "{}/file is no folder"),
        (("prepare_gldv2", "--csv", "/nowhere", "--images", "/nowhere", "--out", "/proc/o"), "cannot write /proc/o: "),
        (("export_images", "--rec", "/nowhere", "--out", "/proc/out"), "cannot write /proc/out: No such file"),
        (("benchmark", "--out", "/proc/out"), "cannot write /proc/out: No such file"),
        (("demo", "--out", "/proc/out"), "cannot write /proc/out: No such file"),
    ],
)
def test_output_that_cannot_be_written_is_told_before_anything_is_opened(run, tmp_path, words, line):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=line.format(tmp_path)):
        run(*(word.format(tmp_path) for word in words))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_cache_and_store_that_are_only_read_need_not_be_written(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")

    def refuse(*arguments: object, **options: object) -> None:
        raise UserError("cannot write it")

    monkeypatch.setattr("core.embeddings.cache.require_writable", refuse)
    monkeypatch.setattr("core.embeddings.extraction.require_replaceable", refuse)
    for folder, file in (("cache", "3f"), ("store", "store.json")):
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match="cannot write it"):
            require_cache(tmp_path / folder) if folder == "cache" else require_writable_store(tmp_path / folder)
        (tmp_path / folder / file).write_text("{}")
    require_cache(tmp_path / "cache")
    require_writable_store(tmp_path / "store")
    assert caplog.messages == ["cannot write it: only embeddings that are already there can be used"]


def test_statistic_whose_place_cannot_be_written_is_not_computed():
    with pytest.raises(UserError, match="^cannot write /proc/means.npy: "):
        write_once(Path("/proc/means.npy"), 8, lambda: pytest.fail("it is computed"))


def test_extraction_to_a_place_that_cannot_be_written_embeds_nothing(tiny_records, ranks):
    encoder = projection_encoder()
    with pytest.raises(UserError, match="^cannot write /proc/features: "):
        extract_embeddings(encoder, RecordDataset(tiny_records), Path("/proc/features"), ranks)
    assert encoder.module.calls == 0


class Unreadable:
    """Images on a disk that fails."""

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        raise OSError(errno.ESTALE, "Stale file handle", "/nfs/train.rec")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_the_disk_in_a_worker_keeps_its_number_and_path(num_workers):
    with pytest.raises(OSError, match="Stale file handle: '/nfs/train.rec'") as raised:
        next(load_batches(Unreadable(), [[0]], num_workers))
    assert (raised.value.errno, raised.value.filename) == (errno.ESTALE, "/nfs/train.rec")


def test_line_that_asks_for_a_network_names_the_option_that_gives_it(run, tmp_path, monkeypatch):
    folder = write_run_folder(tmp_path / "run")
    bare = shutil.copy(folder / "model.pt", tmp_path / "bare.pt")
    words = ("--data-path", tmp_path, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--device", "cpu")
    for tool in ("ijbc_eval", "compatibility_matrix"):
        monkeypatch.setattr(f"{tool}.require_meta", lambda *arguments, **options: None)
    for model, old, option in ((bare, folder, "-net"), (folder, bare, "-old_net")):
        with pytest.raises(UserError, match=f"bare.pt is a bare state dict, .*: name it with {option}$"):
            run("ijbc_eval", "-m", model, "-m_old", old, *words)
    with pytest.raises(UserError, match="bare.pt is a bare state dict, .*: name it with -net$"):
        run("export_onnx", "-m", bare, "-o", tmp_path / "x.onnx")
    with pytest.raises(UserError, match="bare.pt is a bare state dict, .*: name it with --networks$"):
        run("compatibility_matrix", "--models", folder, bare, *words)
