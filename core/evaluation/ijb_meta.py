"""The meta files of IJB-B and IJB-C in InsightFace's layout: images, templates, pairs, galleries and probes."""

import codecs
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from core.errors import UserError
from core.files import first_line, require_file
from core.images.source import file_stamps, fingerprint_files
from core.parallel.threads import in_order

__all__ = ["SUBSETS", "IdentificationLists", "IjbImages", "Pairs", "Subjects", "read_identification", "read_images",
           "read_pairs", "require_meta"]  # fmt: skip

SUBSETS = {"IJBC": ("G1", "G2"), "IJBB": ("S1", "S2")}
"""The two data sets and the names that their galleries have in file names."""
LARGEST_IN_TABLE = 1 << 22
"""A template's id from which on rows are searched for, not looked up in a table of 4 bytes an id."""


@dataclass(frozen=True)
class IjbImages:
    """The N images of a data set, and the R memberships of images in the T templates.

    `names` (N,) below `root`/loose_crop, `landmarks` (N, 5, 2) pixels x y, `detector_scores` (N,). Of membership r,
    `member_image[r]` is a row of the images, `member_template[r]` of `template_ids` (T,) (ascending), and
    `media_size[r]` the number of images of its media in its template.
    """

    root: Path
    subset: str
    names: list[str]
    landmarks: np.ndarray
    detector_scores: np.ndarray
    member_image: np.ndarray
    member_template: np.ndarray
    media_size: np.ndarray
    template_ids: np.ndarray

    @property
    def num_templates(self) -> int:
        """T."""
        return len(self.template_ids)

    def path(self, row: int) -> Path:
        """The file of image `row`."""
        return self.root / "loose_crop" / self.names[row]

    @cached_property
    def stamps(self) -> np.ndarray:
        """`file_stamps` of the images (N, 2), of when they are asked for first."""
        listed_in = _meta_path(self.root, self.subset, "name_5pts_score.txt")
        return file_stamps(self.root / "loose_crop", self.names, listed_in)

    @cached_property
    def fingerprint(self) -> str:
        """`fingerprint_files` of the images and their landmarks: what embeddings depend on."""
        return fingerprint_files(self.names, self.stamps, self.landmarks)


@dataclass(frozen=True)
class Pairs:
    """Pairs of templates: rows of the images' `template_ids`, int32 (P,) each, and whether they show one person."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class Subjects:
    """Templates with their subjects: `templates` rows of the images' `template_ids` (K,), `subjects` ids (K,)."""

    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True)
class IdentificationLists:
    """The galleries `g1`, `g2` and the probes of the 1:N protocol."""

    galleries: dict[str, Subjects]
    probes: Subjects


def require_meta(data_path: str | Path, subset: str, one_to_n: bool) -> Path:
    """The data set's folder: `data_path`/`subset`, or `data_path` itself if it holds `meta/`.

    `UserError` naming the first meta file of the protocol (1:1 or 1:N) that is missing, or the folder.
    """
    data_path = Path(data_path)
    if not data_path.is_dir():
        raise UserError(f"evaluation folder not found: {data_path}")
    root = data_path if (data_path / "meta").is_dir() else data_path / subset
    files = ["face_tid_mid.txt", "name_5pts_score.txt"]
    if one_to_n:
        files += [*(f"1N_gallery_{name}.csv" for name in SUBSETS[subset]), "1N_probe_mixed.csv"]
    else:
        files.append("template_pair_label.txt")
    for file in files:
        require_file(_meta_path(root, subset, file), f"meta file of {subset}")
    if not (root / "loose_crop").is_dir():
        raise UserError(f"folder of images not found: {root / 'loose_crop'}")
    return root


def read_images(root: Path, subset: str) -> IjbImages:
    """Images and template memberships of the data set at `root` (see `require_meta`).

    `UserError` naming file and line where a line is malformed, an image is listed twice, or only one of the two files
    lists it. Memory: some 200 bytes an image.
    """
    name_path, media_path = (_meta_path(root, subset, f) for f in ("name_5pts_score.txt", "face_tid_mid.txt"))
    numbers = [f"n{i}" for i in range(10)]
    images = _read_table(name_path, {"name": pl.String, **dict.fromkeys([*numbers, "score"], pl.Float64)})
    members = _read_table(media_path, {"name": pl.String, "template": pl.Int64, "media": pl.Int64})
    twice = images["name"].is_duplicated()
    if twice.any():
        raise UserError(f"{name_path} lists the image {images['name'].filter(twice)[0]} twice")
    if images["name"].equals(members["name"]):  # as the released files list them
        member_image = np.arange(len(images))
    else:
        for listed, path, other, other_path in (
            (images, name_path, members, media_path), (members, media_path, images, name_path),
        ):  # fmt: skip
            missing = listed.join(other, on="name", how="anti")
            if len(missing):
                raise UserError(f"{path} lists the image {missing['name'][0]}, which {other_path} does not")
        numbered = images.select("name").with_row_index("row")
        rows = members.select("name").join(numbered, on="name", maintain_order="left")["row"]
        member_image = rows.to_numpy().astype(np.int64)
    template_ids, member_template = np.unique(members["template"].to_numpy(), return_inverse=True)
    media_size = members.select(pl.len().over("template", "media")).to_series()
    landmarks = images.select(numbers).to_numpy().reshape(-1, 5, 2)
    with np.errstate(invalid="ignore"):
        spread = np.ptp(landmarks, axis=1)
    degenerate = np.flatnonzero(~(np.isfinite(landmarks).all(axis=(1, 2)) & (spread > 0).any(axis=1)))
    if len(degenerate):
        name = images["name"][int(degenerate[0])]
        raise UserError(
            f"{name_path}: the five landmarks of {name} are one point or not finite: detect that face again"
        )
    scores = images["score"].to_numpy()
    if not np.isfinite(scores).all():
        name = images["name"][int(np.isfinite(scores).argmin())]
        raise UserError(f"{name_path}: the detector score of {name} is not finite: detect that face again")
    return IjbImages(
        root=root,
        subset=subset,
        names=images["name"].to_list(),
        landmarks=landmarks,
        detector_scores=scores,
        member_image=member_image,
        member_template=member_template,
        media_size=media_size.to_numpy(),
        template_ids=template_ids,
    )


def read_pairs(images: IjbImages) -> Pairs:
    """The template pairs of the 1:1 protocol. Memory at the peak about 35 bytes a pair, 9 after it returns.

    `UserError` naming file and line where a line is malformed, and naming a template that no image belongs to.
    """
    path = _meta_path(images.root, images.subset, "template_pair_label.txt")
    table = _read_table(path, {"first": pl.Int32, "second": pl.Int32, "same": pl.Int8})
    if not table["same"].is_between(0, 1).all():
        line = int((~table["same"].is_between(0, 1)).arg_true()[0]) + 1
        raise UserError(f"{path}, line {line}: the label must be 0 or 1")
    first, second = in_order(lambda side: _template_rows(images, table[side].to_numpy(), path), ("first", "second"), 2)
    return Pairs(first, second, table["same"].to_numpy() == 1)


def read_identification(images: IjbImages) -> IdentificationLists:
    """Galleries and probes of the 1:N protocol; a template listed on several lines counts once.

    `UserError` naming file and line where a line is malformed, naming a template that no image belongs to, or one
    that a file assigns to two subjects.
    """
    galleries = {
        f"g{i}": _read_subjects(images, f"1N_gallery_{n}.csv") for i, n in enumerate(SUBSETS[images.subset], 1)
    }
    return IdentificationLists(galleries, _read_subjects(images, "1N_probe_mixed.csv"))


def _meta_path(root: Path, subset: str, file: str) -> Path:
    return root / "meta" / f"{subset.lower()}_{file}"


def _read_table(path: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """A file of lines with the fields of `schema`, separated by blanks or tabs; empty lines are skipped.

    A file that another program has saved again, with tabs, several blanks or blanks at the end of a line, is read in a
    second try, which takes the text's size three times.
    """
    first_line(path, "meta file")
    table = _parse(path, schema)
    if table is None:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        lines = re.sub(rb"[ \t]+", b" ", lines)
        table = _parse(re.sub(rb"(?m)^ | (?=\r?$)", b"", lines), schema)
    if table is None:
        raise _bad_line(path, schema)
    if not len(table):
        raise UserError(f"{path} is empty")
    return table


def _parse(source: Path | bytes, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame | None:
    """The table, without empty lines; None if a line does not fit the schema."""
    if not source:
        return pl.DataFrame(schema=schema)
    try:
        table = pl.read_csv(source, has_header=False, separator=" ", quote_char=None, schema=schema)
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=schema)
    except pl.exceptions.PolarsError:
        return None
    if any(table.null_count().row(0)):
        table = table.filter(~pl.all_horizontal(pl.all().is_null()))
    return None if any(table.null_count().row(0)) else table


def _bad_line(path: Path, schema: dict[str, type[pl.DataType]]) -> UserError:
    """The error of the first line that does not fit the schema. Slow: only for a file that could not be read."""
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != len(schema):
                return UserError(
                    f"{path}, line {number}: {len(fields)} fields, expected {len(schema)} separated by blanks or tabs"
                )
            for field, kind in zip(fields, schema.values()):
                if pl.Series([field]).cast(kind, strict=False).null_count():
                    return UserError(f"{path}, line {number}: {field[:100]!r} is not a value of type {kind}")
    return UserError(f"{path} cannot be read as a table of {len(schema)} columns")


def _read_subjects(images: IjbImages, file: str) -> Subjects:
    path = _meta_path(images.root, images.subset, file)
    header = first_line(path, "meta file")
    separator = next((mark for mark in ",;\t" if mark.encode() in header), ",")
    try:
        table = pl.read_csv(path, columns=[0, 1], infer_schema=False, truncate_ragged_lines=True, separator=separator)
    except pl.exceptions.PolarsError as error:
        said = str(error).split("\n")[0][:200]
        raise UserError(f"{path} cannot be read: {said}; expected a header and lines template,subject") from error
    table.columns = ["template", "subject"]
    fields = pl.col("template", "subject")
    table = table.select(fields.str.strip_chars().replace("", None)).with_row_index("line", 2)
    table = table.filter(~pl.all_horizontal(fields.is_null())).with_columns(fields.cast(pl.Int64, strict=False))
    bad = table.filter(pl.any_horizontal(fields.is_null()))["line"]
    if len(bad):
        raise UserError(f"{path}, line {bad[0]}: expected two whole numbers, template and subject")
    table = table.select(fields).unique()
    if not len(table):
        raise UserError(f"{path} lists no template")
    table = table.sort("template")
    twice = table["template"].is_duplicated()
    if twice.any():
        raise UserError(f"{path} assigns the template {table['template'].filter(twice)[0]} to two subjects")
    return Subjects(_template_rows(images, table["template"].to_numpy(), path), table["subject"].to_numpy())


def _template_rows(images: IjbImages, ids: np.ndarray, path: Path) -> np.ndarray:
    """Rows of `images.template_ids`, int32 (K,), that have these ids (K,).

    From a table of all ids where they are small numbers: a binary search for each of millions takes 40 times as long.
    """
    known = images.template_ids
    if 0 <= known[0] and known[-1] < LARGEST_IN_TABLE and 0 <= ids.min() and ids.max() <= known[-1]:
        table = np.full(known[-1] + 1, -1, np.int32)
        table[known] = np.arange(len(known), dtype=np.int32)
        rows = table.take(ids)
        unknown = rows < 0
    else:
        rows = np.searchsorted(known, ids).clip(max=len(known) - 1).astype(np.int32)
        unknown = known[rows] != ids
    if unknown.any():
        listed_in = _meta_path(images.root, images.subset, "face_tid_mid.txt")
        raise UserError(f"{path} names the template {ids[unknown][0]}, which has no image in {listed_in}")
    return rows
