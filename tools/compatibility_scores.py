"""Scores of an update from results files: p_up, p_comp and p_1 of AdvBCT, the update gain, and the plain criterion.

    python tools/compatibility_scores.py work_dirs/{old,new,alone,cross}/ijbc/results.json
    python tools/compatibility_scores.py --metric map_medium --metric map_hard work_dirs/*/roxford5k/results.json

The files are those that tools/ijbc_eval.py and tools/roxford_eval.py write. Each test set needs four of them: the self-
tests of the old model, of the new one, and of a model trained alone on the new one's data (star), and the cross-test
of new queries in the old gallery. Which is which is found from the models in the files, in whatever order they come.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import ArgumentParser

from core.errors import UserError, run_program
from core.evaluation.compatibility import CompatibilityScores, scores
from core.evaluation.result_files import Evaluation, UpdateTests, assign_roles, default_metric, read_evaluation
from core.evaluation.tables import format_table
from core.logs import set_up_logging

COLUMNS = ("old/old", "new/new", "star/star", "new/old", "gain", "p_up", "p_comp", "p_1", "new/old > old/old")


def main() -> None:
    """Parse, find the tests, print the table."""
    set_up_logging()
    args = parse_arguments()
    by_task = find_tests([read_evaluation(path) for path in args.results])
    test_sets = choose_metrics(by_task, args.metric)
    rates = [read_rates(by_task[task], metric) for task, metric in test_sets]
    print(make_table(test_sets, rates))
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
        "top1, medium mAP, mAP@100)",
    )
    return parser.parse_args()


def find_tests(evaluations: Sequence[Evaluation]) -> dict[str, UpdateTests]:
    """The four tests by task; `UserError` unless all tasks test the same three models."""
    tasks = dict.fromkeys(evaluation.task for evaluation in evaluations)
    by_task = {task: assign_roles([e for e in evaluations if e.task == task]) for task in tasks}
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
        chosen = [metric for metric in dict.fromkeys(wanted) if metric in tests.cross.metrics]
        test_sets += [(task, metric) for metric in chosen or [default_metric(task)]]
    unknown = set(wanted) - {metric for _, metric in test_sets}
    if unknown:
        known = dict.fromkeys(metric for tests in by_task.values() for metric in tests.cross.metrics)
        raise UserError(f"--metric {sorted(unknown)[0]} is in none of the files, which have {', '.join(known)}")
    return test_sets


def read_rates(tests: UpdateTests, metric: str) -> list[float]:
    """The four tests' values of the metric in per cent, in the order of `UpdateTests.all`."""
    rates = []
    for evaluation in tests.all():
        value = evaluation.metrics.get(metric)
        if value is None:
            why = "cannot be resolved by the data" if metric in evaluation.metrics else "is missing"
            raise UserError(f"{evaluation.path}: {metric} {why}: name another with --metric")
        rates.append(100 * value)
    return rates


def make_table(test_sets: Sequence[tuple[str, str]], rates: Sequence[Sequence[float]]) -> str:
    """A line for each test set, and one for all together."""
    rows = []
    for (task, metric), values in zip(test_sets, rates):
        new, star, cross, old = (f"{value:.2f}" for value in values)
        found = find_scores([values], f"{task} {metric}")
        verdict = "yes" if found.compatible[0] else "no"
        rows.append([f"{task} {metric}", old, new, star, cross, *score_cells(found), verdict])
    overall = find_scores(rates, "overall")
    verdict = f"{sum(overall.compatible)} of {len(rates)}"
    rows.append(["overall", *[""] * 4, *score_cells(overall), verdict])
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
