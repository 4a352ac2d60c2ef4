"""Image files that change, go or are cut short between the look-up of a data set and their reading; circular links."""

import os
import pickle

import numpy as np
import pytest
from tiny import write_records

from core.builtin.find_images import find_images
from core.data.lists import ListDataset
from core.data.open_dataset import open_dataset
from core.data.records import RecordDataset
from core.errors import UserError
from core.evaluation.gldv2 import read_gldv2
from core.evaluation.ijb_embeddings import AlignedImages
from core.evaluation.ijb_meta import read_images, require_meta
from core.evaluation.retrieval_images import ResizedImages, read_image_list
from core.evaluation.revisited_files import read_revisited
from core.images.source import fingerprint_files

KINDS = ["list", "list that skips", "aligned", "resized"]


@pytest.fixture(params=KINDS)
def source(request, tree, tmp_path):
    """A source of files, looked up and ready to be read, and its first file."""
    root = tree / "IJBC"
    images = read_images(root, "IJBC")
    (tmp_path / "list.txt").write_text("".join(f"{name} 0\n" for name in images.names))
    if request.param.startswith("list"):
        skips = request.param != "list"
        found = ListDataset(tmp_path / "list.txt", root / "loose_crop", image_size=24, skip_bad=skips)
    elif request.param == "aligned":
        found = AlignedImages(images, 24)
    else:
        (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in images.names))
        found = ResizedImages(read_image_list(tmp_path / "names.txt", root / "loose_crop", "list"), [24])
    assert len(found.fingerprint) == 64
    return found, images.path(0)


def rewritten(path):
    """The same size, as `cp` or an editor leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0")
    os.utime(path, ns=(1, 1))


CHANGES = {
    "cut short": lambda path: os.truncate(path, 100),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path: os.truncate(path, 0),
    "another file": lambda path: os.replace(path.with_name(sorted(os.listdir(path.parent))[-1]), path),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_file_is_told_with_its_name_here_and_in_a_worker(source, change):
    found, path = source
    rows = np.arange(2)
    assert len(next(iter(found.read(rows).values()))) == 2
    there = pickle.dumps(found)
    CHANGES[change](path)
    for reader in (found, pickle.loads(there)):
        with pytest.raises(UserError, match=f"{path} has changed since"):
            reader.read(rows)


@pytest.mark.parametrize("source", ["aligned", "resized"], indirect=True)
def test_images_of_a_test_may_not_be_written_again_while_they_are_embedded(source):
    found, path = source
    rewritten(path)
    with pytest.raises(UserError, match=f"{path} has changed since"):
        found.read(np.arange(2))


@pytest.mark.parametrize("source", ["list", "aligned", "resized"], indirect=True)
def test_removed_file_is_told_with_its_name(source):
    found, path = source
    path.unlink()
    with pytest.raises(UserError, match=rf"{path}.*No such file"):
        found.read(np.arange(2))


def test_fingerprints_are_those_of_earlier_versions():
    """Of names, stamps and regions, in this order: stores that are there stay valid."""
    import hashlib

    stamps, regions = np.array([[3, 10**18], [4, 7]]), np.array([[0.5, 1.0]])
    expected = hashlib.sha256(b"a.jpg\nb/c.jpg" + regions.tobytes() + stamps.astype("<i8").tobytes()).hexdigest()
    assert fingerprint_files(["a.jpg", "b/c.jpg"], stamps, regions) == expected


@pytest.fixture
def circle(tmp_path):
    """A link that leads to itself by way of another."""
    (tmp_path / "circle").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "circle")
    return tmp_path / "circle"


@pytest.mark.parametrize("place", ["", "/x"])
def test_links_in_a_circle_and_into_the_void_are_one_line_wherever_data_are_named(circle, tmp_path, place):
    (tmp_path / "void").symlink_to(tmp_path / "nowhere")
    for link in (f"{circle}{place}", f"{tmp_path / 'void'}{place}"):
        readers = [
            lambda link=link: open_dataset(link),
            lambda link=link: open_dataset(f"{link}.txt"),
            lambda link=link: require_meta(link, "IJBC", one_to_n=True),
            lambda link=link: read_revisited(link, "roxford5k"),
            lambda link=link: read_gldv2(link),
        ]
        for read in readers:
            with pytest.raises(UserError):
                read()


def test_files_of_a_list_that_are_links_in_a_circle_are_missing_ones(circle, tmp_path):
    (tmp_path / "list.txt").write_text("circle 0\nback/x.jpg 1\n")
    with pytest.raises(UserError, match="2 of its 2 files are missing .*: circle, back/x.jpg"):
        ListDataset(tmp_path / "list.txt")


def test_records_and_folders_behind_links_are_read(tmp_path):
    write_records(tmp_path / "train", [0, 1])
    (tmp_path / "elsewhere").mkdir()
    for suffix in (".rec", ".idx"):
        (tmp_path / "elsewhere" / f"train{suffix}").symlink_to(tmp_path / f"train{suffix}")
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    assert open_dataset(tmp_path / "folder").fingerprint == RecordDataset(tmp_path / "train").fingerprint


def test_circles_among_the_folders_of_identities_are_left_out_by_name(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "circle").symlink_to(tmp_path / "ann" / "circle")
    (tmp_path / "bob").symlink_to(tmp_path / "bob")
    (tmp_path / "ann" / "up").symlink_to("..")
    found = find_images(tmp_path)
    assert not found.identities
    assert sorted(found.left_out["broken links and other things that are no files"]) == ["ann/circle", "bob"]
    assert found.left_out["links to a folder that is looked through anyway"] == ["ann/up"]
