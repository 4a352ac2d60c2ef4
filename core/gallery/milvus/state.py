"""What a gallery in Milvus keeps beside its entries and vectors: its head, its documents, and who writes.

Milvus has no transactions, so a gallery has a **head**: one small record that says how far the row numbers go, which
versions and documents there are, and which rows are to be removed. A change is written beside what is there, then a new
head is inserted: that request is the commit. What no head names is not seen by readers, and the next writer removes it.

Writers take turns by **tickets**. A writer inserts its ticket, then reads all tickets: if there is another one it takes
its own back and waits. Of two that come at the same time at least one sees the other (reads are Strong): never do both
go on. A writer that was killed leaves its ticket, by which the next one knows that there is something to tidy up: at
once if it was a process of the same machine, else when the ticket, which a living writer renews, has not changed for
`LEASE` seconds. (A writer that its system stops for longer than that and then lets go on would break the rule.)
"""

import json
import os
import random
import socket
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from core.errors import UserError
from core.gallery.milvus.connection import Connection, RequestError
from core.gallery.store import Version

__all__ = ["Head", "State", "Writing"]

CHUNK = 60_000
"""Characters of JSON, all of them ASCII, in a row."""
HEAD_PARTS = 1 << 23
PARTS = 1 << 24
"""Keys of one generation: first the chunks of its documents, then those of its head."""
FIELDS = {
    "kind": ("VARCHAR", {"max_length": 16}),
    "part": ("INT64", {}),
    "parts": ("INT64", {}),
    "checksum": ("INT64", {}),
    "text": ("VARCHAR", {"max_length": 65535}),
}
WAIT, BEAT, LEASE = 20.0, 3.0, 12.0
"""Seconds that a writer waits for another, between two renewals of a ticket, and until a silent one counts as dead."""
TRIES = 5
"""How often a document is read whose chunks another process has just replaced."""

_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Within a process writers to galleries of the same name take turns by a lock."""
_claims: set[int] = set()
"""Keys of the claims that this process holds."""


@dataclass(frozen=True)
class Head:
    """The state of a gallery."""

    generation: int = 0
    """One more with each head."""
    removals: int = 0
    """One more with each head that took something away: if it is the same after a read, nothing went meanwhile."""
    rows: int = 0
    """Entries have smaller row numbers; those of others are what a killed process left."""
    numbers: int = 0
    """Number of the next version; none is used twice."""
    versions: dict[str, tuple[int, Version]] = field(default_factory=dict)
    """Number and version, by key."""
    documents: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key of the first chunk and number of chunks, by name."""
    dead: tuple[int, ...] = ()
    """Rows that are no entries any more, and may not be removed yet."""

    def is_entry(self, rows: np.ndarray) -> np.ndarray:
        """Which of rows (B,) that lie in the collection of entries are entries."""
        return (rows < self.rows) & ~np.isin(rows, np.array(self.dead, dtype=np.int64))

    @property
    def condition(self) -> str:
        """The same for a request."""
        return f"row < {self.rows}" + (f" and row not in {list(self.dead)}" if self.dead else "")

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        return {**vars(self), "versions": {key: (number, asdict(v)) for key, (number, v) in self.versions.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Head":
        """The reverse of `to_json`."""
        versions = {key: (number, Version(**v)) for key, (number, v) in value["versions"].items()}
        documents = {name: (first, parts) for name, (first, parts) in value["documents"].items()}
        fields: dict[str, Any] = {**value, "versions": versions, "documents": documents, "dead": tuple(value["dead"])}
        return cls(**fields)


class Writing:
    """The turn of one writer."""

    def __init__(self, state: "State", key: int, head: Head, abandoned: dict[int, dict[str, Any]]):
        self.head = head
        self.abandoned = abandoned
        """What writers that were killed said of their work, by the key of their ticket."""
        self._state, self._key = state, key
        self._work: dict[str, Any] = {}
        self._beat = 0
        self._lock = threading.Lock()

    def announce(self, work: dict[str, Any]) -> None:
        """Write down what is about to be done, for the next writer to complete if this one is killed."""
        with self._lock:
            self._work = work
            self._renew()

    def commit(self, documents: Mapping[str, Any] | None = None, **changes: Any) -> None:
        """Replace the head: `changes` of its fields and `documents`, all at once."""
        self.head = self._state.replace_head(self.head, documents or {}, changes)

    def forget_abandoned(self) -> None:
        """Take the tickets of killed writers away, when all is tidied up."""
        self._state.delete(np.array(list(self.abandoned), dtype=np.int64))
        self.abandoned = {}

    def keep_alive(self, stop: threading.Event) -> None:
        """Renew the ticket until `stop`, in a thread."""
        while not stop.wait(BEAT):
            with self._lock, _forgiving():
                self._renew()

    def _renew(self) -> None:
        self._beat += 1
        self._state.write_ticket(self._key, self._beat, self._work)


class State:
    """The collection `<gallery>__state`."""

    def __init__(self, connection: Connection, name: str, place: str):
        self.collection = f"{name}__state"
        self.place = place
        self._connection = connection
        self._seen: dict[int, tuple[int, float]] = {}
        """Of other writers' tickets: the last renewal seen, and when."""

    def create(self) -> None:
        """Make the collection with an empty head."""
        self._connection.create(self.collection, "key", FIELDS, 2)
        self._insert_chunks("head", HEAD_PARTS, json.dumps(Head().to_json()))

    def head(self) -> Head:
        """The newest one."""
        return self._newest_head(self._connection.select(self.collection, 'kind == "head"', ["key", "parts", "text"]))

    def document(self, name: str) -> Any:
        """None if there is none of the name."""
        for _ in range(TRIES):
            head = self.head()
            if name not in head.documents:
                return None
            first, parts = head.documents[name]
            rows = self._connection.among(self.collection, "key", _keys(first, parts), ["key", "checksum", "text"])
            if len(rows) == parts:
                rows.sort(key=lambda row: row["key"])
                if any(zlib.crc32(row["text"].encode()) != row["checksum"] for row in rows):
                    raise UserError(f"the document {name} of {self.place} is damaged")
                return json.loads("".join(row["text"] for row in rows))
        raise UserError(f"the document {name} of {self.place} is not complete")

    def replace_head(self, head: Head, documents: Mapping[str, Any], changes: Mapping[str, Any]) -> Head:
        """Write the next head, and `documents` before it."""
        generation, chunks = head.generation + 1, dict(head.documents)
        old = [_keys(*head.documents[name]) for name in documents if name in head.documents]
        first = generation * PARTS
        for name, value in documents.items():
            chunks.pop(name, None)
            if value is not None:
                parts = self._insert_chunks("document", first, json.dumps(value))
                chunks[name] = (first, parts)
                first += parts
        new = replace(head, generation=generation, documents=chunks, **changes)
        self._insert_chunks("head", generation * PARTS + HEAD_PARTS, json.dumps(new.to_json()))
        old.append(_keys(head.generation * PARTS + HEAD_PARTS, _chunks(json.dumps(head.to_json()))))
        self.delete(np.concatenate(old))
        return new

    def remove_unnamed(self, head: Head) -> None:
        """Remove the chunks that this head, the newest one, does not name."""
        rows = self._connection.select(self.collection, 'kind in ["head", "document"]', ["key"])
        keys = np.array([row["key"] for row in rows], dtype=np.int64)
        named = keys // HEAD_PARTS == 2 * head.generation + 1
        for first, parts in head.documents.values():
            named |= (keys >= first) & (keys < first + parts)
        self.delete(keys[~named])

    def delete(self, keys: np.ndarray) -> None:
        """Remove rows of the collection."""
        self._connection.delete(self.collection, "key", keys)

    def write_ticket(self, key: int, beat: int, work: Any, kind: str = "ticket") -> None:
        """Add or renew a ticket, or a claim."""
        text = json.dumps({"machine": _machine(), "process": os.getpid(), "work": work})
        self._write(kind, [key], [beat], [1], [text])

    @contextmanager
    def claimed(self, work: str) -> Iterator[None]:
        """As of `Store.claimed`. Claims are tickets of another kind, which keep out no writers.

        Of two that come at the same time both may be refused. One of another machine that is silent is waited for, to
        tell whether it is dead: for `LEASE` seconds at most.
        """
        key = -1 - random.SystemRandom().getrandbits(62)
        self.write_ticket(key, 0, work, "claim")
        stop = threading.Event()
        renewing = threading.Thread(target=self._keep_claim, args=(key, work, stop), daemon=True)
        _claims.add(key)
        try:
            self._require_no_claim(key)
            if not self._connection.lite:
                renewing.start()
            yield
        finally:
            _claims.discard(key)
            stop.set()
            if renewing.is_alive():
                renewing.join()
            self.delete(np.array([key]))

    def _require_no_claim(self, own: int) -> None:
        """`UserError` if another claim is that of a living process; remove those of dead ones."""
        started, first = time.monotonic(), {}
        while True:
            rows = self._connection.select(self.collection, 'kind == "claim"', ["key", "part", "text"])
            claims = {row["key"]: row for row in rows if row["key"] != own}
            alive, dead = None, []
            for key, row in claims.items():
                holder = json.loads(row["text"])
                if holder["machine"] != _machine():
                    beat = first.setdefault(key, row["part"])
                    if beat != row["part"]:
                        alive = holder
                    elif time.monotonic() - started > LEASE:
                        dead.append(key)
                elif key in _claims or (holder["process"] != os.getpid() and _is_running(holder["process"])):
                    alive = holder
                else:
                    dead.append(key)
            if alive is not None:
                raise UserError(
                    f"another work holds {self.place} ({alive['work']}, process {alive['process']} on "
                    f"{alive['machine'].split()[0]}): wait until it ends, or stop it, then repeat the command"
                )
            self.delete(np.array(dead, dtype=np.int64))
            if len(dead) == len(claims):
                return
            time.sleep(BEAT / 4)

    def _keep_claim(self, key: int, work: str, stop: threading.Event) -> None:
        """Renew a claim until `stop`, in a thread."""
        beat = 0
        while not stop.wait(BEAT):
            beat += 1
            with _forgiving():
                self.write_ticket(key, beat, work, "claim")

    @contextmanager
    def writing(self) -> Iterator[Writing]:
        """This writer's turn, for the newest head.

        It ends with the context. If a request fails in it, or anything but a `UserError` leaves it, the ticket stays,
        so that the next writer tidies up. `UserError` if another one writes for longer than `WAIT` seconds.
        """
        turn = _turns[self.collection]
        if not turn.acquire(timeout=WAIT):
            raise self._busy()
        try:
            key = -1 - random.SystemRandom().getrandbits(62)
            writing = Writing(self, key, *self._enter(key))
            stop, complete = threading.Event(), True
            thread = threading.Thread(target=writing.keep_alive, args=(stop,), daemon=True)
            if not self._connection.lite:  # a file has one process, which needs no renewals to know that it lives
                thread.start()
            try:
                yield writing
            except BaseException as error:
                complete = isinstance(error, UserError) and not isinstance(error, RequestError)
                raise
            finally:
                stop.set()
                if not self._connection.lite:
                    thread.join()
                if complete:
                    self.delete(np.array([key]))
        finally:
            turn.release()

    def _enter(self, key: int) -> tuple[Head, dict[int, dict[str, Any]]]:
        """Wait for the turn: the newest head, and what killed writers said of their work, by ticket."""
        deadline = time.monotonic() + WAIT
        while True:
            self.write_ticket(key, 0, {})
            heads, tickets = self._heads_and_tickets(key)
            if not self._living(tickets):
                return self._newest_head(heads), {row["key"]: json.loads(row["text"])["work"] for row in tickets}
            self.delete(np.array([key]))
            while self._living(tickets):
                if time.monotonic() > deadline:
                    raise self._busy()
                time.sleep(random.uniform(0.05, 0.4))
                _, tickets = self._heads_and_tickets(key)

    def _busy(self) -> UserError:
        return UserError(f"another process writes to {self.place}: repeat the command when it is done")

    def _heads_and_tickets(self, own: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows = self._connection.select(
            self.collection, 'kind in ["head", "ticket"]', ["key", "kind", "part", "parts", "text"]
        )
        tickets = [row for row in rows if row["kind"] == "ticket" and row["key"] != own]
        return [row for row in rows if row["kind"] == "head"], tickets

    def _living(self, tickets: list[dict[str, Any]]) -> bool:
        """Whether one of the tickets may be that of a process that goes on."""
        now = time.monotonic()
        living = False
        for row in tickets:
            writer = json.loads(row["text"])
            if row["key"] not in self._seen or self._seen[row["key"]][0] != row["part"]:
                self._seen[row["key"]] = row["part"], now
            here = writer["machine"] == _machine()
            gone = here and (writer["process"] == os.getpid() or not _is_running(writer["process"]))
            living |= not gone and now - self._seen[row["key"]][1] < LEASE
        return living

    def _newest_head(self, rows: list[dict[str, Any]]) -> Head:
        """Of the heads that are complete."""
        chunks: defaultdict[int, dict[int, str]] = defaultdict(dict)
        parts = {}
        for row in rows:
            generation, part = divmod(row["key"], PARTS)
            chunks[generation][part] = row["text"]
            parts[generation] = row["parts"]
        complete = [generation for generation, found in chunks.items() if len(found) == parts[generation]]
        if not complete:
            raise UserError(f"there is no gallery {self.place}, or its creation was cut short: create it")
        return Head.from_json(json.loads("".join(text for _, text in sorted(chunks[max(complete)].items()))))

    def _insert_chunks(self, kind: str, first: int, text: str) -> int:
        parts = _chunks(text)
        texts = [text[i * CHUNK : (i + 1) * CHUNK] for i in range(parts)]
        self._write(kind, list(range(first, first + parts)), list(range(parts)), [parts] * parts, texts)
        return parts

    def _write(self, kind: str, keys: list[int], part: list[int], parts: list[int], texts: list[str]) -> None:
        columns = {
            "key": np.array(keys, dtype=np.int64),
            "vector": np.ones((len(keys), 2), dtype=np.float32),  # Milvus has no collection without vectors
            "kind": [kind] * len(keys),
            "part": np.array(part, dtype=np.int64),
            "parts": np.array(parts, dtype=np.int64),
            "checksum": np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.int64),
            "text": texts,
        }
        self._connection.upsert(self.collection, columns)


@contextmanager
def _forgiving() -> Iterator[None]:
    """A renewal that fails is tried again; the writer itself will see that the server is gone."""
    try:
        yield
    except RequestError:
        pass


def _chunks(text: str) -> int:
    return -(-len(text) // CHUNK)


def _keys(first: int, parts: int) -> np.ndarray:
    return np.arange(first, first + parts, dtype=np.int64)


def _machine() -> str:
    """Where a process number means the same process: the machine, and on Linux the container's own numbering."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return f"{socket.gethostname()} {numbering}"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
