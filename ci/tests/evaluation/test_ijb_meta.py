import os

import numpy as np
import pytest

from core.errors import UserError
from core.evaluation.ijb_meta import read_identification, read_images, read_pairs, require_meta


def open_tree(path, subset="IJBC", one_to_n=False):
    return read_images(require_meta(path, subset, one_to_n), subset)


def meta(tree, file):
    return tree / "IJBC" / "meta" / f"ijbc_{file}"


def test_images_members_and_media_are_those_of_the_files(tree):
    images = open_tree(tree)
    lines = [line.split() for line in meta(tree, "face_tid_mid.txt").read_text().splitlines()]
    points = [line.split() for line in meta(tree, "name_5pts_score.txt").read_text().splitlines()]
    assert images.names == [fields[0] for fields in points]
    np.testing.assert_allclose(images.landmarks.reshape(-1, 10), np.array(points)[:, 1:11].astype(float))
    assert [images.names[row] for row in images.member_image] == [fields[0] for fields in lines]
    assert images.template_ids[images.member_template].tolist() == [int(fields[1]) for fields in lines]
    media = [tuple(fields[1:]) for fields in lines]
    assert images.media_size.tolist() == [media.count(key) for key in media]


def test_files_in_another_order_are_joined_by_image_name(tree):
    before = open_tree(tree)
    path = meta(tree, "face_tid_mid.txt")
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    after = open_tree(tree)
    assert after.names == before.names
    assert after.member_image.tolist() == before.member_image[::-1].tolist()


@pytest.mark.parametrize("change", ["same", "swapped", "in two templates"])
def test_a_membership_has_the_row_of_its_name_whether_or_not_the_files_list_names_alike(tree, change):
    of_files = [meta(tree, file) for file in ("name_5pts_score.txt", "face_tid_mid.txt")]
    points, members = (path.read_text().splitlines() for path in of_files)
    points, members = points[::-1], members[::-1]  # not in the order of the names
    if change == "swapped":
        members[-2:] = members[:-3:-1]
    elif change == "in two templates":
        members.append(members[3].split()[0] + " 10 7")
    for path, lines in zip(of_files, (points, members)):
        path.write_text("\n".join(lines) + "\n")
    names = [line.split()[0] for line in points]
    found = open_tree(tree).member_image
    assert found.tolist() == [names.index(line.split()[0]) for line in members] and found.dtype == np.int64


def test_image_that_both_files_list_twice_is_named(tree):
    for file in ("name_5pts_score.txt", "face_tid_mid.txt"):
        lines = meta(tree, file).read_text().splitlines()
        meta(tree, file).write_text("\n".join([*lines, lines[3]]) + "\n")
    with pytest.raises(UserError, match="name_5pts_score.txt lists the image 4.jpg twice"):
        open_tree(tree)


def test_data_path_may_be_the_folder_itself_or_its_parent_and_ijbb_has_its_own_names(tmp_path, tree_writer):
    tree = tree_writer(tmp_path / "b", "IJBB")
    assert require_meta(tree, "IJBB", False) == require_meta(tree / "IJBB", "IJBB", True) == tree / "IJBB"
    lists = read_identification(open_tree(tree, "IJBB", True))
    assert set(lists.galleries) == {"g1", "g2"} and len(lists.galleries["g1"].templates) == 4
    assert len(lists.probes.templates) == 24, "repeated lines of a template count once"


@pytest.mark.parametrize(
    ("file", "one_to_n"),
    [
        ("face_tid_mid.txt", False),
        ("name_5pts_score.txt", True),
        ("template_pair_label.txt", False),
        ("1N_gallery_G1.csv", True),
        ("1N_gallery_G2.csv", True),
        ("1N_probe_mixed.csv", True),
    ],
)
def test_missing_meta_file_is_named(tree, file, one_to_n):
    meta(tree, file).unlink()
    with pytest.raises(UserError, match=f"ijbc_{file}"):
        require_meta(tree, "IJBC", one_to_n)


def test_wrong_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        require_meta(tmp_path / "nowhere", "IJBC", False)
    with pytest.raises(UserError, match="IJBC/meta/ijbc_face_tid_mid.txt"):
        require_meta(tmp_path, "IJBC", False)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("face_tid_mid.txt", "3.jpg 10", "line 3: 2 fields, expected 3"),
        ("face_tid_mid.txt", "3.jpg ten 2", "line 3: 'ten' is not"),
        ("name_5pts_score.txt", "3.jpg 1 2 3 4 5 6 7 8 9 10 0.9 5", "line 3: 13 fields, expected 12"),
        ("name_5pts_score.txt", "3.jpg 1 2 3 4 5 6 7 x 9 10 0.9", "line 3: 'x' is not"),
        ("name_5pts_score.txt", "3.jpg 1 2 1 2 1 2 1 2 1 2 0.9", "landmarks of 3.jpg"),
        ("name_5pts_score.txt", "3.jpg 1 2 3 4 5 6 7 nan 9 10 0.9", "landmarks of 3.jpg"),
        ("name_5pts_score.txt", "3.jpg 1 2 3 4 5 6 7 8 9 10 nan", "detector score of 3.jpg is not finite"),
        ("name_5pts_score.txt", "3.jpg 1 2 3 4 5 6 7 8 9 10 inf", "detector score of 3.jpg is not finite"),
        ("name_5pts_score.txt", "2.jpg 1 2 3 4 5 6 7 8 9 10 0.9", "2.jpg twice"),
        ("name_5pts_score.txt", "other.jpg 1 2 3 4 5 6 7 8 9 10 0.9", "image other.jpg"),
        ("face_tid_mid.txt", "other.jpg 10 1", "image 3.jpg"),
        ("template_pair_label.txt", "10 20 2", "line 3: the label must be 0 or 1"),
        ("template_pair_label.txt", "10 20", "line 3: 2 fields, expected 3"),
        ("template_pair_label.txt", "10 99999999999 1", "line 3: '99999999999' is not"),
        ("template_pair_label.txt", "10 21 1", "template 21"),
        ("1N_gallery_G1.csv", "ten,5,x", "line 3"),
        ("1N_gallery_G1.csv", "11,5,x", "template 11"),
        ("1N_probe_mixed.csv", "20,5,x", "template 20 to two subjects"),
    ],
)
def test_malformed_or_contradicting_line_is_named_with_its_file(tree, file, line, message):
    path = meta(tree, file)
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message) as caught:
        images = open_tree(tree)
        read_pairs(images)
        read_identification(images)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("file", ["face_tid_mid.txt", "template_pair_label.txt", "1N_gallery_G1.csv"])
def test_file_that_ends_in_zeros_is_refused_before_it_is_parsed(tree, file):
    path = meta(tree, file)
    os.truncate(path, 1 << 36)
    with pytest.raises(UserError, match="is no meta file: it ends in zeros, as an unfinished copy does"):
        images = open_tree(tree)
        read_pairs(images)
        read_identification(images)


def test_blank_lines_and_windows_line_ends_are_read_and_an_empty_file_is_not(tree):
    images = open_tree(tree)
    path = meta(tree, "template_pair_label.txt")
    before = read_pairs(images)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    after = read_pairs(images)
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n\n"))
    blank = read_pairs(images)
    for field in ("first", "second", "same"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))
        np.testing.assert_array_equal(getattr(blank, field), getattr(before, field))
    path.write_text("")
    with pytest.raises(UserError, match="empty"):
        read_pairs(images)


def test_fingerprint_sees_a_changed_image_and_names_a_missing_one(tree):
    before = open_tree(tree).fingerprint
    assert open_tree(tree).fingerprint == before
    image = tree / "IJBC" / "loose_crop" / "5.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    assert open_tree(tree).fingerprint != before
    image.unlink()
    with pytest.raises(UserError, match="loose_crop/5.jpg"):
        _ = open_tree(tree).fingerprint


@pytest.mark.parametrize("add", [0, 1 << 22, -40])
def test_templates_are_found_by_their_ids_however_large_or_negative(tree, add):
    """The tree's ids are small and in steps; by a table and by a search, the rows are those of the ids in the files."""
    for file, fields in (("face_tid_mid.txt", (1,)), ("template_pair_label.txt", (0, 1))):
        lines = [line.split() for line in meta(tree, file).read_text().splitlines()]
        for line in lines:
            for field in fields:
                line[field] = str(int(line[field]) + add)
        meta(tree, file).write_text("".join(" ".join(line) + "\n" for line in lines))
    images = open_tree(tree)
    pairs = read_pairs(images)
    listed = [[int(field) for field in line[:2]] for line in lines]
    assert np.stack([images.template_ids[pairs.first], images.template_ids[pairs.second]], 1).tolist() == listed
    for unknown in (add + 1, images.template_ids[0] - 1, images.template_ids[-1] + 1):
        text = "".join(" ".join(line) + "\n" for line in lines)
        meta(tree, "template_pair_label.txt").write_text(f"{text}{listed[0][0]} {unknown} 1\n")
        with pytest.raises(UserError, match=f"template {unknown}, which has no image"):
            read_pairs(images)


def everything(tree):
    images = open_tree(tree)
    pairs, lists = read_pairs(images), read_identification(images)
    subjects = [*lists.galleries.values(), lists.probes]
    arrays = [images.landmarks, images.detector_scores, images.member_image, images.member_template, images.media_size]
    arrays += [images.template_ids, pairs.first, pairs.second, pairs.same]
    return images.names, [*arrays, *(one.templates for one in subjects), *(one.subjects for one in subjects)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b" ", b"\t"),
        lambda text: text.replace(b" ", b"  "),
        lambda text: text.replace(b"\n", b" \n"),
        lambda text: text.replace(b"\n", b" \t\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n").replace(b" ", b"\t") + b"\r\n \t\r\n",
        lambda text: b"  " + text.replace(b"\n", b"\n\t"),
        lambda text: text.rstrip(b"\n"),
    ],
)
def test_files_that_another_program_saved_again_give_the_same_numbers(tree, change):
    names, expected = everything(tree)
    for path in (tree / "IJBC" / "meta").glob("*.txt"):
        path.write_bytes(change(path.read_bytes()))
    after, arrays = everything(tree)
    assert after == names
    for got, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("separator", [b",", b";", b"\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_files_that_excel_saved_again_give_the_same_subjects(tree, separator, mark):
    names, expected = everything(tree)
    for path in (tree / "IJBC" / "meta").glob("*.csv"):
        path.write_bytes(mark + path.read_bytes().replace(b",", separator).replace(b"\n", b"\r\n") + b"\r\n")
    for got, wanted in zip(everything(tree)[1], expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_damage_in_a_file_with_tabs_is_named_with_its_line(tree):
    path = meta(tree, "face_tid_mid.txt")
    lines = path.read_text().replace(" ", "\t").splitlines()
    for line, message in (("3.jpg\t10", "line 3: 2 fields, expected 3"), ("3.jpg\tten\t1", "line 3: 'ten' is not")):
        path.write_text("\r\n".join([*lines[:2], line, *lines[3:]]))
        with pytest.raises(UserError, match=message):
            open_tree(tree)
