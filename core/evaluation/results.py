"""results.json: what evaluations, a matrix of models or the demo found, written and read here alone.

An evaluation is one query model against the gallery of the same or another one, on one task:

    {"task": "ijbc-1:N", "models": {"query": MODEL, "gallery": MODEL}, "metrics": {...}, "settings": {...}}

with MODEL = {"name", "path", "fingerprint", "network", "embedding_size", "embeds", "preprocessing", "mapped_from",
"base"}; tests of pairs also have "thresholds", scores by the rate that they give. Several evaluations are a list under
"evaluations"; a matrix of models has "compatible" beside it. The demo's file has only the metrics, by pair
"query/gallery" of its models' names, where a plus and the kind of a map follow the model whose embeddings it maps, and
by protocol "1:1" and "1:N". Metrics are rates in [0, 1]; null where the data cannot resolve one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.evaluation.backfill import Curve
from core.files import reading
from core.json_files import read_json
from core.models.encoder import Encoder
from core.outputs import replaced_atomically

__all__ = ["Evaluation", "Model", "UpdateTests", "assign_roles", "default_metric", "read_evaluations",
           "write_backfill", "write_evaluation", "write_evaluations", "write_matrix", "write_pairs"]  # fmt: skip

DEFAULT_METRICS = {
    "ijbc-1:1": "tar@far=1e-04",
    "ijbb-1:1": "tar@far=1e-04",
    "ijbc-1:N": "top1",
    "ijbb-1:N": "top1",
    "roxford5k": "map_medium",
    "rparis6k": "map_medium",
    "gldv2": "map@100",
}
VERIFICATION = "verification-"
"""What the task of a verification set begins with; its name follows."""
STAR = "self-test of a model trained alone (star; if the new model was, name it twice with --models)"
MAIN_ROADS = ("gallery_map", "query_map", "direct", "side_by_side")
"""Of a backfill: the first of them that there is stands for it."""
PROTOCOLS = ("1:1", "1:N")
AGAIN = (
    "give the results.json that tools/ijbc_eval.py, roxford_eval.py, verify.py, compatibility_matrix.py or the demo "
    "writes"
)
DEMO_SUBSET = "ijbc"
"""The subset of the demo's evaluation tree."""


@dataclass(frozen=True)
class Model:
    """A model as a results file describes it; two are the same if their fingerprints are."""

    name: str
    fingerprint: str
    path: str = ""
    network: str = ""
    embedding_size: int = 0
    embeds: str = ""
    """What it embeds in this evaluation, in words."""
    preprocessing: str = ""
    """What it is fed: input size, mean and standard deviation, and BGR if it is that."""
    mapped_from: str = ""
    """Of a stored gallery that is mapped into another space: the fingerprint of the model that embedded it."""
    base: str = ""
    """Of queries that are mapped into a gallery's space: the fingerprint of the model that embedded them."""

    @classmethod
    def of(cls, encoder: Encoder, path: str | Path, embeds: str, name: str | None = None) -> "Model":
        """Of an encoder that was loaded from the model argument `path`."""
        origin = encoder.gallery_model
        return cls(
            name or encoder.name,
            encoder.fingerprint,
            str(path),
            encoder.network,
            encoder.embedding_size,
            embeds,
            encoder.preprocessing,
            "" if origin is encoder else origin.fingerprint,
            "" if encoder.base is None or encoder.maps_gallery else encoder.base.fingerprint,
        )


@dataclass(frozen=True)
class Evaluation:
    """A query model against the gallery of the same or of another model."""

    task: str
    query: Model
    gallery: Model
    metrics: Mapping[str, object]
    """Rates in [0, 1] by name, None where the data cannot resolve one; 1:N has each gallery's own nested below."""
    settings: Mapping[str, object] = field(default_factory=dict)
    thresholds: Mapping[str, object] = field(default_factory=dict)
    """Tests of pairs: the score from which a pair is accepted, by the name of a rate."""
    path: Path = Path()
    """The file that it was read from."""

    @property
    def is_self_test(self) -> bool:
        """Whether queries and gallery were embedded by one and the same model."""
        return self.query.fingerprint == self.gallery.fingerprint

    def __str__(self) -> str:
        """The pair of models and the file, for error messages."""
        return f"{self.query.name}/{self.gallery.name} in {self.path}"

    def rate(self, metric: str) -> float:
        """A metric; `UserError` if the evaluation has none of that name, or cannot resolve it."""
        value = self.metrics.get(metric)
        if not isinstance(value, int | float):
            why = "cannot be resolved by the data" if metric in self.metrics else "is missing"
            raise UserError(f"{self.path}: {metric} {why}: name another with --metric")
        return float(value)

    def rates(self) -> list[str]:
        """Names of the metrics that are not nested."""
        return [name for name, value in self.metrics.items() if not isinstance(value, Mapping)]

    def as_json(self) -> dict[str, object]:
        """The evaluation as results.json has it."""
        models = {"query": asdict(self.query), "gallery": asdict(self.gallery)}
        thresholds = {"thresholds": self.thresholds} if self.thresholds else {}
        return {"task": self.task, "models": models, "metrics": self.metrics, **thresholds, "settings": self.settings}


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write the results file of one evaluation."""
    _write(path, evaluation.as_json())


def write_evaluations(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the results file of several evaluations."""
    _write(path, {"evaluations": [one.as_json() for one in evaluations]})


def write_matrix(path: Path, evaluations: Sequence[Evaluation], compatible: Sequence[Mapping[str, object]]) -> None:
    """Write the results file of a matrix of models; `compatible` has an entry for each newer query and older gallery.

    Such an entry names `query` and `gallery` and says for each metric whether the two are compatible, None if unknown.
    """
    _write(path, {"evaluations": [one.as_json() for one in evaluations], "compatible": list(compatible)})


def write_pairs(path: Path, metrics: Mapping[str, Mapping[str, Mapping[str, object]]]) -> None:
    """Write the demo's results file: metrics by pair "query/gallery" and protocol "1:1" or "1:N"."""
    _write(path, metrics)


def write_backfill(
    path: Path,
    task: str,
    models: Mapping[str, Model],
    shares: np.ndarray,
    metric: str,
    roads: Mapping[str, Mapping[str, Mapping[str, Curve]]],
) -> None:
    """Write the results file of a backfill, curves by road, scale and order.

    Under "orders" are again the curves of one road, a mapped one if there is one, on its last scale: {order: {metric:
    [...], "nfr": [...], "pfr": [...], "auc": area of `metric`}}.
    """
    described = {
        road: {
            scale: {
                order: {
                    **{name: _rates(values) for name, values in curve.metrics.items()},
                    "nfr": _rates(curve.nfr),
                    "pfr": _rates(curve.pfr),
                    "auc": curve.area(metric, shares),
                }
                for order, curve in curves.items()
            }
            for scale, curves in scales.items()
        }
        for road, scales in roads.items()
    }
    road = next(name for name in MAIN_ROADS if name in described)
    scale = list(described[road])[-1]
    content = {
        "task": task,
        "models": {role: asdict(model) for role, model in models.items()},
        "share": np.round(shares, 6).tolist(),
        "road": road,
        "scores": scale,
        "orders": described[road][scale],
        "roads": described,
    }
    _write(path, content)


def _rates(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _write(path: Path, content: Mapping[str, object]) -> None:
    with replaced_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """All evaluations of a results file of any of the three kinds; `UserError` if it is missing or is none of them.

    The demo's models are known by their names alone.
    """
    path = Path(path)
    content = read_json(path, "results file", AGAIN)
    with reading(path, "results file of an evaluation", AGAIN):
        if "task" in content:
            return [_evaluation(content, path)]
        if "evaluations" in content:
            found = [_evaluation(one, path) for one in content["evaluations"]]
        else:
            found = [_pair(pair, protocol, content[pair][protocol], path) for pair in content for protocol in PROTOCOLS]
        if not found:
            raise ValueError("it is empty")
        return found


def _evaluation(content: Mapping[str, dict], path: Path) -> Evaluation:
    query, gallery = (_model(content["models"][side]) for side in ("query", "gallery"))
    settings, thresholds = (dict(content.get(key, {})) for key in ("settings", "thresholds"))
    return Evaluation(str(content["task"]), query, gallery, dict(content["metrics"]), settings, thresholds, path)


def _model(content: Mapping[str, object]) -> Model:
    optional = ("path", "network", "embedding_size", "embeds", "preprocessing", "mapped_from", "base")
    known = {key: content[key] for key in optional if key in content}
    return Model(str(content["name"]), str(content["fingerprint"]), **known)  # pyrefly: ignore[bad-argument-type]


def _pair(pair: str, protocol: str, metrics: Mapping[str, object], path: Path) -> Evaluation:
    query, gallery = pair.split("/")
    query_model = Model(query, query, base=query.rpartition("+")[0])
    gallery_model = Model(gallery, gallery, mapped_from=gallery.rpartition("+")[0])
    return Evaluation(f"{DEMO_SUBSET}-{protocol}", query_model, gallery_model, dict(metrics), path=path)


@dataclass(frozen=True)
class UpdateTests:
    """The four evaluations that the scores of an update need on one test set."""

    new: Evaluation
    """New queries, new gallery; where queries are mapped, of the model that embedded them."""
    star: Evaluation
    """The same for a model trained alone on the new model's data."""
    cross: Evaluation
    """New queries, old gallery."""
    old: Evaluation
    """Old queries, old gallery."""

    def all(self) -> tuple[Evaluation, ...]:
        """In the order of the arguments of `core.evaluation.compatibility.scores`."""
        return self.new, self.star, self.cross, self.old

    def models(self) -> dict[str, Model]:
        """The three models by their role in the update."""
        return {"old": self.old.query, "new": self.cross.query, "star": self.star.query}


def default_metric(task: str) -> str:
    """The metric that papers compare by on this task; `UserError` for a task without one."""
    if task.startswith(VERIFICATION):
        return "accuracy"
    if task not in DEFAULT_METRICS:
        raise UserError(f"the task {task} has no usual metric: name one with --metric")
    return DEFAULT_METRICS[task]


def assign_roles(evaluations: Sequence[Evaluation], star_is_new: bool = False) -> UpdateTests:
    """Find from the models' fingerprints which of the evaluations of one task is which test.

    The only cross-test names the new model (queries) and the old one (gallery; of a mapped gallery the model that
    embedded it). Their self-tests are new and old, and the remaining one is star; a mapped gallery's own is left out.
    Of mapped queries new is the self-test of the model that embedded them, which is what a gallery that is embedded
    again gives; the map's own counts where that one is not there.
    `star_is_new`: the new model itself was trained alone, its self-test is star too. `UserError` if a test is missing,
    if there are two candidates for one, or if their settings differ.
    """
    task = evaluations[0].task
    cross = _only([e for e in evaluations if not e.is_self_test], task, "cross-test (new queries, old gallery)")
    by_role = {"new": [], "old": [], "star": [], "mapped": []}
    gallery = cross.gallery
    role_of = {gallery.fingerprint: "mapped", gallery.mapped_from or gallery.fingerprint: "old"}
    role_of[cross.query.fingerprint] = "mapped"
    tested = {evaluation.query.fingerprint for evaluation in evaluations if evaluation.is_self_test}
    role_of[cross.query.base if cross.query.base in tested else cross.query.fingerprint] = "new"
    for evaluation in evaluations:
        if evaluation.is_self_test:
            by_role[role_of.get(evaluation.query.fingerprint, "star")].append(evaluation)
    new = _only(by_role["new"], task, f"self-test of the new model ({cross.query.name})")
    embedded_by = "the model that embedded " if gallery.mapped_from else ""
    tests = UpdateTests(
        new=new,
        old=_only(by_role["old"], task, f"self-test of the old model ({embedded_by}{gallery.name})"),
        star=new if star_is_new else _only(by_role["star"], task, STAR),
        cross=cross,
    )
    for other in tests.all():
        if other.settings != cross.settings:
            keys = {**other.settings, **cross.settings}
            key = next(k for k in keys if other.settings.get(k) != cross.settings.get(k))
            raise UserError(
                f"{task}: {other} and {cross} were evaluated with different settings ({key}): evaluate one again"
            )
    return tests


def _only(found: Sequence[Evaluation], task: str, what: str) -> Evaluation:
    if not found:
        raise UserError(f"{task}: there is no {what} among the files: add its results.json")
    if len(found) > 1:
        raise UserError(
            f"{task}: which is the {what}, {found[0]} or {found[1]}? Give only one of them, or name the models of the "
            "update with --models"
        )
    return found[0]
