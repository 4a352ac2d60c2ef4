"""The results.json files of evaluations, and which of them is which test of an update."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.files import require_file

__all__ = ["Evaluation", "NamedModel", "UpdateTests", "assign_roles", "default_metric", "read_evaluation"]

DEFAULT_METRICS = {
    "ijbc-1:1": "tar@far=1e-04",
    "ijbb-1:1": "tar@far=1e-04",
    "ijbc-1:N": "top1",
    "ijbb-1:N": "top1",
    "roxford5k": "map_medium",
    "rparis6k": "map_medium",
    "gldv2": "map@100",
}


@dataclass(frozen=True)
class NamedModel:
    """A model as a results file names it: two are the same if their fingerprints are."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Evaluation:
    """One results file: a query model against the gallery of the same or of another one."""

    path: Path
    task: str
    query: NamedModel
    gallery: NamedModel
    metrics: dict[str, float | None]
    """Rates in [0, 1] by name; None where the data cannot resolve it. Nested metrics are left out."""
    settings: dict[str, object]

    @property
    def is_self_test(self) -> bool:
        """Whether queries and gallery were embedded by one and the same model."""
        return self.query.fingerprint == self.gallery.fingerprint


@dataclass(frozen=True)
class UpdateTests:
    """The four tests that tell what an update is worth on one test set."""

    new: Evaluation
    """New queries, new gallery."""
    star: Evaluation
    """The same for a model trained alone on the new model's data."""
    cross: Evaluation
    """New queries, old gallery."""
    old: Evaluation
    """Old queries, old gallery."""

    def all(self) -> tuple[Evaluation, ...]:
        """In the order of the arguments of `core.evaluation.compatibility.scores`."""
        return self.new, self.star, self.cross, self.old

    def models(self) -> dict[str, NamedModel]:
        """By what it is in the update."""
        return {"old": self.old.query, "new": self.new.query, "star": self.star.query}


def read_evaluation(path: str | Path) -> Evaluation:
    """The results file at `path`; `UserError` if it is missing or not one of an evaluation."""
    path = require_file(path, "results file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        task, metrics = content["task"], dict(content["metrics"])
        sides = (content["models"][side] for side in ("query", "gallery"))
        query, gallery = (NamedModel(str(side["name"]), str(side["fingerprint"])) for side in sides)
        settings = dict(content.get("settings", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no results file of an evaluation ({type(error).__name__}: {error}): give the results.json that "
            "tools/ijbc_eval.py or tools/roxford_eval.py writes"
        ) from error
    rates = {name: value for name, value in metrics.items() if value is None or isinstance(value, int | float)}
    return Evaluation(path, str(task), query, gallery, rates, settings)


def default_metric(task: str) -> str:
    """The metric that papers compare by on this task; `UserError` for a task without one."""
    if task not in DEFAULT_METRICS:
        raise UserError(f"the task {task} has no usual metric: name one with --metric")
    return DEFAULT_METRICS[task]


def assign_roles(evaluations: Sequence[Evaluation]) -> UpdateTests:
    """Find out from the models' fingerprints which of the evaluations of one task is which test.

    The one cross-test names the new model (queries) and the old one (gallery); of the self-tests theirs are new and
    old, and the one left is star. `UserError` if a test is missing, if two could be one, or if they were not made
    with the same settings.
    """
    task = evaluations[0].task
    cross = _only([e for e in evaluations if not e.is_self_test], task, "cross-test (new queries, old gallery)")
    by_role = {"new": [], "old": [], "star": []}
    role_of = {cross.query.fingerprint: "new", cross.gallery.fingerprint: "old"}
    for evaluation in evaluations:
        if evaluation.is_self_test:
            by_role[role_of.get(evaluation.query.fingerprint, "star")].append(evaluation)
    tests = UpdateTests(
        new=_only(by_role["new"], task, f"self-test of the new model ({cross.query.name})"),
        old=_only(by_role["old"], task, f"self-test of the old model ({cross.gallery.name})"),
        star=_only(by_role["star"], task, "self-test of a model trained alone (star)"),
        cross=cross,
    )
    for other in tests.all():
        if other.settings != cross.settings:
            keys = {**other.settings, **cross.settings}
            key = next(k for k in keys if other.settings.get(k) != cross.settings.get(k))
            raise UserError(
                f"{task}: {other.path} and {cross.path} were made with different settings ({key}): make one anew"
            )
    return tests


def _only(found: Sequence[Evaluation], task: str, what: str) -> Evaluation:
    if not found:
        raise UserError(f"{task}: there is no {what} among the files: add its results.json")
    if len(found) > 1:
        raise UserError(f"{task}: which is the {what}, {found[0].path} or {found[1].path}? Give only one of them")
    return found[0]
