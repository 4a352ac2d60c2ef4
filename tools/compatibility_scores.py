"""Scores of an update from results files: p_up, p_comp and p_1 of AdvBCT, update gain, flips, and the plain criterion.

    python tools/compatibility_scores.py work_dirs/{old,new,alone,cross}/ijbc/results.json
    python tools/compatibility_scores.py --metric map_medium --metric map_hard work_dirs/*/roxford5k/results.json

The files are those that tools/ijbc_eval.py, tools/roxford_eval.py, tools/verify.py, tools/compatibility_matrix.py and
the demo write.
Each test set needs four evaluations: the self-tests of the old model, of the new one, and of a model trained alone on
the new one's data (star), and the cross-test of new queries in the old gallery. Which is which is found from the models
in the files, in any order; --models names them where there are more, as in the demo's file:

    python tools/compatibility_scores.py --models old new independent --metric top1 work_dirs/demo/results.json

A mapped gallery (docs/maps.md) is compared with the search that it served before, of the model that embedded it. Where
the new model was itself trained alone, it is star too: name it twice.

    python tools/compatibility_scores.py --models old+ridge independent independent work_dirs/demo/results.json

Of mapped queries new/new is the self-test of the model that embedded them, which is what a gallery that is embedded
again gives; the map's own is used where that one is not there.

    python tools/compatibility_scores.py --models old independent+procrustes independent work_dirs/demo/results.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import ArgumentParser

from core.errors import UserError, run_program
from core.evaluation.compatibility import CompatibilityScores, scores
from core.evaluation.results import Evaluation, UpdateTests, assign_roles, default_metric, read_evaluations
from core.evaluation.tables import format_rate, format_table
from core.logs import set_up_logging

COLUMNS = (
    "old/old",
    "new/new",
    "star/star",
    "new/old",
    "NFR",
    "PFR",
    "gain",
    "p_up",
    "p_comp",
    "p_1",
    "new/old > old/old",
)


def main() -> None:
    """Parse, find the tests, print the table."""
    set_up_logging()
    args = parse_arguments()
    evaluations = [evaluation for path in args.results for evaluation in read_evaluations(path)]
    chosen = choose_models(evaluations, args.models)
    by_task = find_tests(chosen, args.models is not None and is_alone(chosen, *args.models[1:]))
    test_sets = choose_metrics(by_task, args.metric)
    rates = [read_rates(by_task[task], metric) for task, metric in test_sets]
    flips = [[format_rate(by_task[task].cross.metrics.get(name)) for name in ("nfr", "pfr")] for task, _ in test_sets]
    print(make_table(test_sets, rates, flips))
    models = next(iter(by_task.values())).models()
    print("\n" + ", ".join(f"{role}: {model.name}" for role, model in models.items()))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser("Print the compatibility scores of an update from results files, by test set and overall.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results.json files, in any order")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        help="compare by this metric, on the tasks that have it; may be given several times (default: TAR at FAR 1e-4, "
        "top1, medium mAP, mAP@100, accuracy)",
    )
    parser.add_argument(
        "--models",
        nargs=3,
        metavar=("OLD", "NEW", "STAR"),
        help="names of the three models, where the files hold results of more (the demo's, a matrix)",
    )
    return parser.parse_args()


def choose_models(evaluations: Sequence[Evaluation], names: Sequence[str] | None) -> list[Evaluation]:
    """The evaluations that the update from `names[0]` to `names[1]` needs, `names[2]` being star; all without names.

    Of a mapped gallery or of mapped queries the self-test of the model that embedded them is needed.
    """
    if names is None:
        return list(evaluations)
    known = {model.name for evaluation in evaluations for model in (evaluation.query, evaluation.gallery)}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"--models {missing[0]}: the files have no such model, only {', '.join(sorted(known))}")
    old, new, star = names
    origins = {one.gallery.mapped_from for one in evaluations if one.gallery.name == old}
    origins |= {one.query.base for one in evaluations if one.query.name == new}
    pairs = {(old, old), (new, new), (star, star), (new, old)}
    chosen = [
        one
        for one in evaluations
        if (one.query.name, one.gallery.name) in pairs or (one.is_self_test and one.query.fingerprint in origins)
    ]
    if not chosen:
        raise UserError(f"--models {' '.join(names)}: the files have no test of this update: add their results.json")
    return chosen


def is_alone(evaluations: Sequence[Evaluation], new: str, star: str) -> bool:
    """Whether star is the new model itself, or the one whose queries are mapped."""
    bases = {one.query.base for one in evaluations if one.query.name == new}
    return star == new or any(one.query.name == star and one.query.fingerprint in bases for one in evaluations)


def find_tests(evaluations: Sequence[Evaluation], star_is_new: bool) -> dict[str, UpdateTests]:
    """The four tests by task; `UserError` unless all tasks test the same three models."""
    tasks = dict.fromkeys(evaluation.task for evaluation in evaluations)
    by_task = {task: assign_roles([e for e in evaluations if e.task == task], star_is_new) for task in tasks}
    first, *others = by_task
    for task in others:
        for role, model in by_task[task].models().items():
            known = by_task[first].models()[role]
            if model.fingerprint != known.fingerprint:
                raise UserError(
                    f"the {role} model of {task} ({model.name}) is not that of {first} ({known.name}): "
                    "give the results of one update"
                )
    return by_task


def choose_metrics(by_task: dict[str, UpdateTests], wanted: Sequence[str]) -> list[tuple[str, str]]:
    """The test sets as (task, metric): of each task the wanted metrics that it has, its usual one if it has none."""
    test_sets = []
    for task, tests in by_task.items():
        chosen = [metric for metric in dict.fromkeys(wanted) if metric in tests.cross.rates()]
        test_sets += [(task, metric) for metric in chosen or [default_metric(task)]]
    unknown = set(wanted) - {metric for _, metric in test_sets}
    if unknown:
        known = dict.fromkeys(metric for tests in by_task.values() for metric in tests.cross.rates())
        raise UserError(f"--metric {sorted(unknown)[0]} is in none of the files, which have {', '.join(known)}")
    return test_sets


def read_rates(tests: UpdateTests, metric: str) -> list[float]:
    """The four tests' values of the metric in per cent, in the order of `UpdateTests.all`."""
    return [100.0 * evaluation.rate(metric) for evaluation in tests.all()]


def make_table(
    test_sets: Sequence[tuple[str, str]], rates: Sequence[Sequence[float]], flips: Sequence[Sequence[str]]
) -> str:
    """A line for each test set, and one for all together; `flips`: NFR and PFR of each cross-test, formatted."""
    rows = []
    for (task, metric), values, cells in zip(test_sets, rates, flips):
        new, star, cross, old = (f"{value:.2f}" for value in values)
        found = find_scores([values], f"{task} {metric}")
        verdict = "yes" if found.compatible[0] else "no"
        rows.append([f"{task} {metric}", old, new, star, cross, *cells, *score_cells(found), verdict])
    overall = find_scores(rates, "overall")
    verdict = f"{sum(overall.compatible)} of {len(rates)}"
    rows.append(["overall", *[""] * 6, *score_cells(overall), verdict])
    return format_table(["%", *COLUMNS], rows)


def find_scores(rates: Sequence[Sequence[float]], name: str) -> CompatibilityScores:
    """The scores over test sets with four values each; `UserError` where they are not defined."""
    try:
        return scores(*zip(*rates))
    except ValueError as error:
        raise UserError(f"{name}: there are no scores: {error}") from error


def score_cells(found: CompatibilityScores) -> list[str]:
    """Gain (a share, mean over the test sets), p_up, p_comp, p_1."""
    gain = sum(found.update_gain) / len(found.update_gain)
    return [f"{gain:.3f}", *(f"{value:.2f}" for value in (found.p_up, found.p_comp, found.p_1))]


if __name__ == "__main__":
    run_program(main)
