"""Search in a gallery whose vectors are of several models, with scores on one scale.

Each entry is served by one vector: the new model's if it has one, else a mapped one, else the old model's. What a query
is compared with is searched version by version, and each cosine becomes the false accept rate (FAR) that the road's
calibration estimates for it: the share of pairs of different identities whose score is as high. The smallest rate comes
first, whichever version it is from.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from core.errors import UserError
from core.evaluation.calibration import ScoreCalibration
from core.gallery.documents import map_from_document, read_calibrations, read_upgrade
from core.gallery.store import Store, Version
from core.gallery.upgrade import Upgrade
from core.models.maps.vectors import unit_rows

__all__ = ["INDEXES", "Found", "search"]

logger = logging.getLogger(__name__)
INDEXES = ("exact", "hnsw", "ivf")
MOST_HITS = 10**6
"""That a query can ask for."""
RECALL_QUERIES = 100
"""That are searched exactly too, to measure the recall of another index."""
SCHEMA = {"query": pl.Int64, "rank": pl.Int64, "id": pl.String, "score": pl.Float32, "far": pl.Float64,
          "version": pl.String}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The answers to a search."""

    hits: pl.DataFrame
    """Columns query (row of the query), rank (from 1), id, score (cosine), far (estimated FAR of one comparison, null
    where there is no calibration), version (key of the vector that answered); by query, then rank."""
    recall: float | None
    """Share of the exact search's hits that the index found, on a sample of the queries; None for the exact search."""


@dataclass(frozen=True)
class _Part:
    """Queries (Q, D), and the vectors that they are compared with."""

    queries: np.ndarray
    version: str
    without: tuple[str, ...]
    calibration: ScoreCalibration | None

    def sample(self, rows: np.ndarray) -> "_Part":
        return _Part(self.queries[rows], self.version, self.without, self.calibration)


def search(
    store: Store,
    queries: np.ndarray,
    model: str,
    k: int,
    *,
    old_queries: np.ndarray | None = None,
    max_far: float | None = None,
    index: str = "exact",
) -> Found:
    """The k best entries for each query (Q, D) of the model with the key `model`, fewer if there are no more.

    During an upgrade queries of the new model reach all entries by the road of the upgrade, and those of the old model
    all that have an old vector. `old_queries` (Q, D_o): the same queries by the old model, which then search the
    entries that have no new vector; roads by which new queries cannot reach those need them. With `max_far` only hits
    of at most that rate are given, perhaps none. `index`: one of INDEXES.

    `UserError` for queries of an unknown model, of another size or without a direction, where old queries are needed,
    and where rates are asked for or needed and a calibration is missing. Memory: unit queries in float64, and for each
    version k hits a query, some 150 bytes each.
    """
    if not 1 <= k <= MOST_HITS:
        raise UserError(f"k = {k} hits cannot be found: ask for 1 to {MOST_HITS:,}")
    if max_far is not None and not 0 < max_far <= 1:
        raise UserError(f"a false accept rate lies between 0 and 1, got {max_far}")
    if index not in INDEXES:
        raise UserError(f"there is no index {index!r}: choose one of {', '.join(INDEXES)}")
    while True:
        upgrade = read_upgrade(store)
        try:
            parts = _parts(store, upgrade, queries, model, old_queries)
            hits = _search_parts(store, parts, k, max_far, index)
            recall = None if index == "exact" else _recall(store, parts, hits, k, max_far)
        except UserError:
            if read_upgrade(store) == upgrade:
                raise
            continue  # it was committed or rolled back meanwhile
        if recall is not None:
            logger.info("recall of %s: %.4f of the exact search's hits", index, recall)
        return Found(hits, recall)


def _parts(
    store: Store, upgrade: Upgrade | None, queries: np.ndarray, model: str, old_queries: np.ndarray | None
) -> list[_Part]:
    """What to search, in this order.

    The new vectors come last: an entry that gets one meanwhile is found twice rather than never.
    """
    versions, calibrations = store.versions(), read_calibrations(store)
    known = list(versions)[:1] if upgrade is None else [upgrade.old, upgrade.new]  # others wait for an upgrade to begin
    if model not in known or model not in versions:
        raise UserError(
            f"{store.place} has no vectors of the model {model}, only of {_named(versions, known)}: embed the queries "
            "by a model that it knows, or plan an upgrade to this one"
        )
    queries = _unit_queries(queries, versions[model], "queries")
    if upgrade is None or model == upgrade.old:
        if old_queries is not None:
            raise UserError(
                f"queries of two models search a gallery during its upgrade alone, together with those of the new one: "
                f"give those of {model} only"
            )
        return [_Part(queries, model, (), calibrations.get("old/old"))]
    new = _Part(queries, upgrade.new, (), calibrations.get("new/new"))
    return [*_stored_part(store, upgrade, queries, old_queries, calibrations), new]


def _stored_part(
    store: Store,
    upgrade: Upgrade,
    queries: np.ndarray,
    old_queries: np.ndarray | None,
    calibrations: Mapping[str, ScoreCalibration],
) -> list[_Part]:
    """How unit queries of the new model reach the entries that have no new vector yet."""
    versions, without = store.versions(), (upgrade.new,)
    old = versions[upgrade.old]
    if old_queries is not None:
        if len(old_queries) != len(queries):
            raise UserError(
                f"{len(queries)} queries by {upgrade.new} and {len(old_queries)} by {upgrade.old} are not the same "
                "ones: give one of each for a query, in the same order"
            )
        old_queries = _unit_queries(old_queries, old, "old model's queries")
        return [_Part(old_queries, old.key, without, calibrations.get("old/old"))]
    if upgrade.road == "direct":
        return [_Part(queries, old.key, without, calibrations.get("new/old"))]
    if upgrade.road == "query_map":
        mapped = map_from_document(store.document("query_map"))(queries)
        return [_Part(mapped, old.key, without, calibrations.get("query_map/old"))]
    if upgrade.road == "gallery_map" and upgrade.mapped is not None:
        if _any_entry(store, old, (upgrade.new, upgrade.mapped)):
            raise UserError(
                f"{store.place}: not all of its vectors are mapped to the space of {upgrade.new} yet: go on with the "
                f"backfill, or search with queries of {upgrade.old}"
            )
        return [_Part(queries, upgrade.mapped, without, calibrations.get("new/gallery_map"))]
    left = len(store) - store.counts().get(upgrade.new, 0)
    if left > upgrade.failed:
        raise UserError(
            f"{store.place}: {left} entries have no vector of {upgrade.new} yet, and by the road {upgrade.road} its "
            f"queries cannot reach them: give the queries of {upgrade.old} too, or alone, or go on with the backfill"
        )
    if left:
        logger.warning("%d entries, whose images could not be read, are found by queries of %s only", left, old.name)
    return []


def _search_parts(store: Store, parts: list[_Part], k: int, max_far: float | None, index: str) -> pl.DataFrame:
    found = [(part, _search_part(store, part, k, index)) for part in parts]
    found = [(part, hits) for part, hits in found if len(hits)] or found[-1:]
    uncalibrated = [part.version for part, _ in found if part.calibration is None]
    if uncalibrated and max_far is not None:
        raise UserError(
            f"{store.place}: no false accept rates are known for the scores of {uncalibrated[0]}: search without a "
            "largest rate, or plan an upgrade, which estimates them"
        )
    if uncalibrated and len(found) > 1:
        raise UserError(
            f"{store.place}: the calibration of the scores of {uncalibrated[0]} is missing, without which hits of two "
            "models cannot be ranked: start the backfill again with its plan"
        )
    hits = pl.concat([hits for _, hits in reversed(found)])  # among equal ones the new vectors come first
    hits = (
        hits.sort("query", pl.col("log_far").fill_null(0), maintain_order=True)
        .unique(["query", "id"], keep="first", maintain_order=True)
        .with_columns(far=pl.col("log_far").exp())
    )
    if max_far is not None:
        hits = hits.filter(pl.col("far") <= max_far)
    return (
        hits.with_columns(rank=pl.int_range(1, pl.len() + 1).over("query"))
        .filter(pl.col("rank") <= k)
        .select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
    )


def _search_part(store: Store, part: _Part, k: int, index: str) -> pl.DataFrame:
    """Columns query, id, score, log_far, version."""
    hits = store.search(part.version, part.queries, k, part.without, index)
    scores = hits.scores.ravel()
    log_far = None if part.calibration is None else part.calibration.log_false_accept_rate(scores.astype(np.float64))
    return pl.DataFrame(
        {
            "query": np.repeat(np.arange(len(hits.scores)), hits.scores.shape[1]),
            "id": pl.Series(hits.ids.ravel().tolist(), dtype=pl.String),
            "score": scores,
            "log_far": pl.Series([None] * len(scores), dtype=pl.Float64) if log_far is None else log_far,
            "version": pl.repeat(part.version, len(scores), dtype=pl.String, eager=True),
        }
    ).filter(pl.col("id").is_not_null())


def _recall(store: Store, parts: list[_Part], hits: pl.DataFrame, k: int, max_far: float | None) -> float:
    """Share of the exact hits of some queries that are among `hits`; 1 if there are none."""
    count = len(parts[-1].queries)
    rows = np.unique(np.linspace(0, count - 1, RECALL_QUERIES).astype(np.int64)) if count else np.empty(0, np.int64)
    exact = _search_parts(store, [part.sample(rows) for part in parts], k, max_far, "exact")
    exact = exact.select(pl.Series(rows).gather(exact["query"]).alias("query"), "id")
    return len(exact.join(hits, on=["query", "id"], how="semi")) / len(exact) if len(exact) else 1.0


def _any_entry(store: Store, version: Version, without: tuple[str, ...]) -> bool:
    """Whether an entry has a vector of a version and none of the others."""
    query = np.zeros((1, version.size), np.float32)
    query[0, 0] = 1
    return store.search(version.key, query, 1, without).ids[0, 0] is not None


def _unit_queries(queries: np.ndarray, version: Version, what: str) -> np.ndarray:
    """Unit vectors (Q, D), float32."""
    if queries.ndim != 2 or queries.dtype.kind not in "fiu":
        raise UserError(f"{what} must be numbers (Q, D), one vector a row: got {queries.dtype} {queries.shape}")
    if queries.shape[1] != version.size:
        raise UserError(
            f"the {what} have size {queries.shape[1]}, vectors of {version.name} have size {version.size}: give those "
            "of that model"
        )
    if not len(queries):
        return queries.astype(np.float32)
    return unit_rows(queries, slice(0, len(queries)), what, np.empty(queries.shape)).astype(np.float32)


def _named(versions: Mapping[str, Version], keys: list[str]) -> str:
    names = [f"{key} ({versions[key].name})" if versions[key].name != key else key for key in keys if key in versions]
    return " and ".join(names) or "none"
