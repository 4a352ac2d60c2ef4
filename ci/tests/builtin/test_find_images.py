"""What counts as an image of an identity in a folder, and that nothing is left out without a word."""

import io
import logging
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from core.builtin.find_images import find_images
from core.builtin.image_folder import folder_source
from core.errors import UserError
from core.images.codec import decode_image

JPEG = cv2.imencode(".jpg", np.full((16, 16, 3), 99, np.uint8))[1].tobytes()
PNG = cv2.imencode(".png", np.full((16, 16, 3), 99, np.uint8))[1].tobytes()
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
DNG = b"II*\0" + struct.pack("<IH", 8, 0) + bytes(60)


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def names(found):
    return {name: [file.name for file in files] for name, files in found.identities.items()}


def test_hidden_and_system_folders_and_files_are_left_out_and_named(tmp_path):
    system = [".ipynb_checkpoints", ".git", ".Trash-1000", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle"]
    system += ["lost+found", "System Volume Information"]
    fill(tmp_path, {f"{name}/1.jpg": JPEG for name in system})
    fill(tmp_path, {"ann/1.jpg": JPEG, "ann/.1.jpg": JPEG, "ann/._1.jpg": b"\0\5\x16\7", "ann/Thumbs.db": b"x"})
    fill(tmp_path, {"ann/.DS_Store": b"x", "ann/@eaDir/1.jpg": JPEG, "@bob/1.jpg": JPEG, "desktop.ini": b"x"})
    found = find_images(tmp_path)
    assert names(found) == {"@bob": ["1.jpg"], "ann": ["1.jpg"]}
    assert sorted(found.left_out["hidden or system folders"]) == sorted([*system, "ann/@eaDir"])
    files = ["desktop.ini", "ann/.1.jpg", "ann/.DS_Store", "ann/._1.jpg", "ann/Thumbs.db"]
    assert sorted(found.left_out["hidden or system files"]) == sorted(files)
    assert set(found.left_out) == {"hidden or system folders", "hidden or system files"}


def test_content_decides_what_is_an_image_not_the_name(tmp_path):
    images = {"a.jfif": JPEG, "b.jpe": JPEG, "c.HEIC": JPEG, "d": PNG, "e.txt": PNG, "f.mpo": JPEG, "g.JPG": JPEG}
    for suffix, kind in ((".gif", "GIF"), (".webp", "WEBP"), (".bmp", "BMP"), (".tif", "TIFF"), (".avif", "AVIF"),
                         (".jp2", "JPEG2000"), (".pgm", "PPM")):  # fmt: skip
        written = io.BytesIO()
        Image.new("RGB", (16, 16), (90, 90, 90)).save(written, kind)
        images["h" + suffix] = written.getvalue()
    others = {
        "i.heic": HEIC,
        "j.nef": DNG,
        "k.mp4": b"\0\0\0\x18ftypmp42" + bytes(50),
        "l.txt": b"notes",
        "m.hif": HEIC,
    }
    fill(tmp_path, {f"p/{name}": content for name, content in (images | others).items()})
    found = find_images(tmp_path)
    assert names(found) == {"p": sorted(images)}
    assert all(decode_image(file.read_bytes()).shape == (16, 16, 3) for file in found.identities["p"])
    assert dict(found.left_out) == {
        "HEIC images, which are not read": ["p/i.heic", "p/m.hif"],
        "camera raw images, which are not read": ["p/j.nef"],
        "files that are no images": ["p/k.mp4", "p/l.txt"],
    }


def test_deeper_images_belong_to_the_uppermost_folder_and_links_are_followed_once(tmp_path):
    src, elsewhere = tmp_path / "src", tmp_path / "elsewhere"
    fill(src, {"ann/2020/2.jpg": JPEG, "ann/2020/may/3.jpg": JPEG, "ann/4.jpg": JPEG, "bob/1.jpg": JPEG, "5.jpg": JPEG})
    fill(src, {"cy/2021/notes.txt": b"none", "readme.txt": b"text"})
    fill(elsewhere, {"1.png": PNG})
    (src / "linked").symlink_to(elsewhere)
    (src / "bob" / "up").symlink_to(src)
    (src / "bob" / "again").symlink_to(src / "bob")
    (src / "bob" / "gone.jpg").symlink_to(src / "nowhere")
    found = find_images(src)
    relative = {name: [str(f.relative_to(src)) for f in files] for name, files in found.identities.items()}
    assert relative == {
        "ann": ["ann/2020/2.jpg", "ann/2020/may/3.jpg", "ann/4.jpg"],
        "bob": ["bob/1.jpg"],
        "linked": ["linked/1.png"],
    }
    assert found.nested == ["ann/2020/2.jpg", "ann/2020/may/3.jpg"]
    assert {what: sorted(paths) for what, paths in found.left_out.items()} == {
        "images outside the folders of identities": ["5.jpg"],
        "files that are no images": ["cy/2021/notes.txt", "readme.txt"],
        "folders without images": ["cy"],
        "links to a folder that is looked through anyway": ["bob/again", "bob/up"],
        "broken links and other things that are no files": ["bob/gone.jpg"],
    }


def test_what_is_left_out_is_in_the_log_and_in_the_description(tmp_path, caplog):
    fill(tmp_path, {f"p{person}/{shot}.jpg": JPEG for person in range(6) for shot in range(2)})
    fill(tmp_path, {"p0/s/1.jpg": JPEG, "__MACOSX/p0/1.jpg": JPEG, "stray.png": PNG})
    fill(tmp_path, {f"p1/{shot}.heic": HEIC for shot in range(5)})
    with caplog.at_level(logging.INFO):
        source = folder_source(tmp_path, 0, 16)
    assert [record.getMessage() for record in caplog.records] == [
        "left out, hidden or system folders (1): __MACOSX",
        "left out, images outside the folders of identities (1): stray.png",
        "left out, HEIC images, which are not read (5): p1/0.heic, p1/1.heic, p1/2.heic and others",
        "images in deeper folders (1) belong to the identity of the uppermost folder: p0/s/1.jpg",
    ]
    assert source.facts["left_out"] == {
        "hidden or system folders": 1,
        "images outside the folders of identities": 1,
        "HEIC images, which are not read": 5,
    }
    assert sorted(source.facts["train_identities"] + source.facts["test_identities"]) == [f"p{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"p0/0.jpg": b""}, r"\(1\): p0/0\.jpg; repair or remove them$"),
        ({"p1/0.png": b"<html>404</html>", "p0/s/9.tif": b"?"}, r"\(2\): p0/s/9\.tif, p1/0\.png; "),
        ({f"p2/{i}.gif": b"text" for i in range(9)}, r"\(9\): p2/0\.gif, p2/1\.gif, p2/2\.gif and others; "),
    ],
)
def test_files_that_only_claim_to_be_images_are_named_before_any_is_read(tmp_path, files, message):
    fill(tmp_path, {f"p{person}/{shot}.jpg": JPEG for person in range(6) for shot in range(2)})
    fill(tmp_path, files)
    with pytest.raises(UserError, match="named as images but hold none " + message):
        folder_source(tmp_path, 0, 16)
