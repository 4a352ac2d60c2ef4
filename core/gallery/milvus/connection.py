"""Requests to a Milvus server or a milvus-lite file, in parts that both take, with their errors in one line.

Every read has consistency level Strong: it sees what any process had written before it began. A collection has a
primary key of integers, a field `vector`, and other fields. What one request writes (at most `PART` rows) is there as a
whole or not at all, even if the process that asked is killed.
"""

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from core.errors import UserError

__all__ = ["LONGEST_TEXT", "MOST_HITS", "PART", "PART_BYTES", "Connection", "RequestError"]

LONGEST_TEXT = 65535
"""Bytes of a text."""
MOST_HITS = 16384
"""Hits that a server gives for a query."""
PART = 4096
"""Rows that one request writes or reads at most."""
PART_BYTES = 1 << 24
"""Bytes of vectors and texts that one request writes at most, unless a single row has more; a server takes 64 MB."""
HITS_PART = 1 << 18
"""Hits that one request asks for at most, over its queries."""
TIMEOUT, CONNECT_TIMEOUT = 120.0, 10.0
"""Seconds after which a server that does not answer is given up."""
TOO_LARGE = ("results exceed the limit size", "maxoutputsize", "message larger than max")
UNREACHABLE = ("fail connecting", "unavailable", "retry timeout", "deadline", "should create connection")

_open_files: Counter[str] = Counter()
_open_files_lock = threading.Lock()
"""Connections of this process to each milvus-lite file: it is let go when the last of them is closed."""


class RequestError(UserError):
    """Milvus cannot be reached or has refused; what was asked may have been done or not."""


class Connection:
    """One to `http://host:port`, or to a milvus-lite file, whose name ends in `.db`.

    A server's token is taken from MILVUS_TOKEN, or from MILVUS_USER and MILVUS_PASSWORD. `UserError` if pymilvus (for a
    file: milvus-lite) is not installed, if nothing answers, or if another process has the file open.
    """

    def __init__(self, uri: str):
        """Memory: what pymilvus takes, and for a file all that milvus-lite keeps of its newest data."""
        self.lite = uri.endswith(".db")
        self.uri = re.sub("//[^/@]*@", "//", uri)
        """Without a password."""
        for package in ("pymilvus", "milvus_lite") if self.lite else ("pymilvus",):
            if find_spec(package) is None:
                raise UserError(f"a gallery in Milvus needs {package}: pip install pymilvus milvus-lite")
        import pymilvus

        # they log tracebacks of what they raise, or handle, as well
        for name in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._types = pymilvus.DataType
        self._path = os.path.abspath(uri)
        self._client: Any = self._connect(pymilvus, uri)

    def _connect(self, pymilvus: Any, uri: str) -> Any:
        environment = os.environ
        user = environment.get("MILVUS_USER")
        token = environment.get("MILVUS_TOKEN") or (f"{user}:{environment.get('MILVUS_PASSWORD', '')}" if user else "")
        if not self.lite:
            with self._one_line():
                return pymilvus.MilvusClient(uri, token=token, timeout=CONNECT_TIMEOUT)
        folder, name = os.path.split(self._path)
        if not os.path.isdir(folder):
            raise UserError(f"the folder {folder} of the Milvus file {name} does not exist: make it")
        with _open_files_lock:
            try:
                client = pymilvus.MilvusClient(self._path)
            except pymilvus.MilvusException as error:
                raise UserError(
                    f"cannot open the Milvus file {self.uri}: another process has it open (milvus-lite is for one"
                    " process at a time; several need a server), or it is no file of milvus-lite"
                ) from error
            _open_files[self._path] += 1
        return client

    def close(self) -> None:
        """Let go of the server or the file."""
        if self._client is None:
            return
        self._client.close()
        self._client = None
        if self.lite:
            from milvus_lite import server_manager_instance

            with _open_files_lock:
                _open_files[self._path] -= 1
                if not _open_files[self._path]:
                    server_manager_instance.release_server(self._path)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        import grpc
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            text = " ".join(str(getattr(error, "message", "") or error).split())
            if any(mark in text.lower() for mark in UNREACHABLE):
                raise RequestError(
                    f"Milvus does not answer at {self.uri}: start it, or correct the URI; a server with accounts also "
                    "needs MILVUS_TOKEN"
                ) from error
            raise RequestError(f"Milvus at {self.uri} refused a request: {text[:500]}; see its log") from error

    def collections(self) -> list[str]:
        """Names of all collections of the server's database or of the file."""
        with self._one_line():
            return self._client.list_collections(timeout=TIMEOUT)

    def create(
        self, collection: str, key: str, fields: Mapping[str, tuple[str, dict[str, Any]]], size: int, look_up: str = ""
    ) -> None:
        """Make a collection, ready for reads and writes; the exact index of cosines on its vectors (size,).

        `fields`: the type and its options, by name; `look_up`: the field, beside the key, that rows are found by.
        """
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(key, self._types.INT64, is_primary=True)
        schema.add_field("vector", self._types.FLOAT_VECTOR, dim=size)
        for name, (kind, options) in fields.items():
            of_elements = {"element_type": self._types[options["element_type"]]} if kind == "ARRAY" else {}
            schema.add_field(name, self._types[kind], **{**options, **of_elements})
        with self._one_line():
            self._client.create_collection(
                collection, schema=schema, num_shards=1, consistency_level="Strong", timeout=TIMEOUT
            )
        self.make_ready(collection, look_up)

    def make_ready(self, collection: str, look_up: str = "") -> None:
        """Load a collection, with the indexes that it lacks first: of the vectors, and of the field `look_up`."""
        with self._one_line():
            if look_up and look_up not in self._client.list_indexes(collection):
                index = self._client.prepare_index_params()
                index.add_index(look_up, index_type="INVERTED" if self.lite else "STL_SORT")
                self._client.create_index(collection, index)
        if self.index_of(collection) is None:
            self._create_index(collection, "FLAT", {})
        with self._one_line():
            # one that is loaded may have a number of replicas that its owner chose
            if self._client.get_load_state(collection)["state"].name != "Loaded":
                self._client.load_collection(collection)

    def index_of(self, collection: str) -> str | None:
        """Type of the index on the vectors, None if there is none."""
        with self._one_line():
            if "vector" not in self._client.list_indexes(collection):
                return None
            return self._client.describe_index(collection, "vector")["index_type"]

    def replace_index(self, collection: str, kind: str, options: Mapping[str, Any]) -> None:
        """Put another index on the vectors; it takes as long as Milvus builds, and nobody reads meanwhile."""
        with self._one_line():
            self._client.release_collection(collection)
            if "vector" in self._client.list_indexes(collection):
                self._client.drop_index(collection, "vector")
        self._create_index(collection, kind, options)
        with self._one_line():
            self._client.load_collection(collection)

    def _create_index(self, collection: str, kind: str, options: Mapping[str, Any]) -> None:
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=kind, metric_type="COSINE", params=dict(options))
        with self._one_line():
            self._client.create_index(collection, index)

    def drop(self, collection: str) -> None:
        """Remove a collection; nothing if there is none."""
        with self._one_line():
            self._client.drop_collection(collection, timeout=TIMEOUT)

    def insert(self, collection: str, columns: Mapping[str, Any]) -> None:
        """Add rows that are not there: `columns` are arrays or lists of the same length, by field."""
        self._write(self._client.insert, collection, columns)

    def upsert(self, collection: str, columns: Mapping[str, Any]) -> None:
        """Add rows, or put them in the place of those with the same key."""
        self._write(self._client.upsert, collection, columns)

    def _write(self, call: Callable, collection: str, columns: Mapping[str, Any]) -> None:
        names, vectors = list(columns), columns["vector"]
        lists = [columns[name] if name == "vector" else _as_list(columns[name]) for name in names]
        sizes = np.full(len(vectors), 64 + 4 * vectors.shape[1])
        for values in lists:
            if len(values) and isinstance(values[0], str):
                sizes += [len(value.encode()) for value in values]
        start = 0
        while start < len(sizes):
            fitting = int(np.searchsorted(np.cumsum(sizes[start : start + PART]), PART_BYTES, side="right"))
            stop = start + max(1, fitting)
            # pymilvus takes rows, one dictionary each
            rows = [dict(zip(names, values)) for values in zip(*(values[start:stop] for values in lists))]
            with self._one_line():
                call(collection, rows, timeout=TIMEOUT)
            start = stop

    def delete(self, collection: str, key: str, values: np.ndarray) -> None:
        """Remove the rows whose key is among `values`."""
        for start in range(0, len(values), PART):
            with self._one_line():
                self._client.delete(collection, filter=_among(key, values[start : start + PART]), timeout=TIMEOUT)

    def delete_from(self, collection: str, key: str, first: int) -> None:
        """Remove the rows whose key is `first` or larger."""
        with self._one_line():
            self._client.delete(collection, filter=f"{key} >= {first}", timeout=TIMEOUT)

    def count(self, collection: str, condition: str) -> int:
        """Number of rows that meet a condition."""
        with self._one_line():
            answer = self._client.query(
                collection, filter=condition, output_fields=["count(*)"], consistency_level="Strong", timeout=TIMEOUT
            )
        return answer[0]["count(*)"]

    def select(self, collection: str, condition: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of the rows that meet a condition; there must be few."""
        with self._one_line():
            return list(
                self._client.query(
                    collection,
                    filter=condition,
                    output_fields=list(fields),
                    consistency_level="Strong",
                    timeout=TIMEOUT,
                )
            )

    def among(self, collection: str, field: str, values: np.ndarray, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of the rows whose `field` is one of `values` (B,) int64, in any order."""
        return self._in_parts(collection, lambda i, j: _among(field, values[i:j]), 0, len(values), fields)

    def between(self, collection: str, key: str, start: int, stop: int, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of the rows with start <= key < stop, in any order."""
        return self._in_parts(collection, lambda i, j: f"{key} >= {i} and {key} < {j}", start, stop, fields)

    def _in_parts(
        self, collection: str, condition: Callable[[int, int], str], start: int, stop: int, fields: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Of parts of the range, halved where a server finds its answer too large."""
        found: list[dict[str, Any]] = []
        step = PART
        while start < stop:
            end = min(start + step, stop)
            try:
                found += self.select(collection, condition(start, end), fields)
            except RequestError as error:
                if end - start == 1 or not any(mark in str(error).lower() for mark in TOO_LARGE):
                    raise
                step = (end - start) // 2
                continue
            start = end
        return found

    def search(
        self, collection: str, queries: np.ndarray, limit: int, condition: str, options: Mapping[str, Any]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each of (Q, D) queries keys int64 and cosines float32 of at most `limit` rows, best first."""
        found = []
        step = max(1, min(HITS_PART // limit, PART_BYTES // (4 * queries.shape[1])))
        for start in range(0, len(queries), step):
            with self._one_line():
                answer = self._client.search(
                    collection,
                    data=queries[start : start + step],
                    limit=limit,
                    filter=condition,
                    search_params={"metric_type": "COSINE", "params": dict(options)},
                    consistency_level="Strong",
                    timeout=TIMEOUT,
                )
            found += [(np.array(hits.ids, dtype=np.int64), np.array(hits.distances, np.float32)) for hits in answer]
        return found


def _as_list(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _among(field: str, values: np.ndarray) -> str:
    return f"{field} in {np.asarray(values).tolist()}"
