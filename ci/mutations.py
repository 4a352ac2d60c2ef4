"""Plant faults in the product, one at a time, and see whether the tests catch them.

    python ci/mutations.py                           all faults, in a copy of the working tree
    python ci/mutations.py --revision df92676        in the files of another revision
    python ci/mutations.py --only reversal margin    the faults whose names contain one of these words
    python ci/mutations.py --all-tests               survivors once more, against the whole suite

Of each fault the table says caught, with the first test that failed, or survived; the exit status is 1 if any survived
or could not be planted. To compare the tests before and after a change, run it with --revision of the last commit
before and then without, and compare the two counts in the last line.

A fault is a text of `core`, `methods` or `old_model` and what replaces it. The text must occur once, in whatever file:
faults survive a move of the code. Where the code is rewritten, add its new text to the fault's forms and keep the old
one, as long as older revisions are compared. The chosen tests are run without any fault first and must pass.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trees import start, write_tree

ROOMS = ("core", "methods", "old_model")


@dataclass(frozen=True)
class Fault:
    """A mistake that tests must find."""

    name: str
    tests: tuple[str, ...]
    """Names of the test files, wherever they are below `ci/tests`, that should find it."""
    forms: tuple[dict[str, str], ...]
    """Replacements that make the fault, as the code is or was written: the first whose texts all occur is planted."""


FAULTS = (
    Fault(
        "AdvBCT: gradient not reversed",
        ("test_advbct.py",),
        (
            {"scale_gradient(new, -reversal)": "scale_gradient(new, reversal)"},
            {" * -ctx.strength": " * ctx.strength"},
        ),
    ),
    Fault(
        "AdvBCT: decay counts epochs from -1",
        ("test_advbct.py",),
        ({"(self.num_epoch - batch.epoch + 1)": "(self.num_epoch - batch.epoch - 1)"},),
    ),
    Fault(
        "AdvBCT: mean over all samples, not those beyond the radius",
        ("test_advbct.py",),
        (
            {"mean_of_selected(beyond, known & (beyond > 0))": "mean_of_selected(beyond.relu(), known)"},
            {"mean_over_ranks(beyond, known & (beyond > 0))": "mean_over_ranks(beyond.relu(), known)"},
        ),
    ),
    Fault(
        "Hot-refresh: negatives not detached",
        ("test_hot_refresh.py",),
        ({"all_gather_rows(new.detach())": "all_gather_rows(new)"},),
    ),
    Fault(
        "mean over the ranks' samples: number of ranks lost",
        ("test_lce.py", "test_advbct.py", "test_collectives.py"),
        (
            {"total * world_size() / count.clamp(min=1)": "total / count.clamp(min=1)"},
            {"total * world_size(group) / count.clamp(min=1)": "total / count.clamp(min=1)"},
        ),
    ),
    Fault(
        "gather: gradient of other ranks lost",
        ("test_collectives.py", "test_partial_fc_ranks.py"),
        (
            {
                "_reduce_scatter_single(own, gradient.contiguous(), group=ctx.group)": (
                    "own = gradient.split(largest)[rank(ctx.group)].contiguous()"
                )
            },
        ),
    ),
    Fault(
        "LCE: gradient of a sharded class weight times the number of ranks",
        ("test_lce.py",),
        (
            {"scale_gradient(world_size() * share, 1 / world_size())": "world_size() * share"},
            {"all_reduce_((gradient / world_size(ctx.group)).contiguous()": "all_reduce_(gradient.contiguous()"},
        ),
    ),
    Fault(
        "NCCL: old logits have a gradient",
        ("test_nccl.py",),
        ({"weight.T @ weight.detach()": "weight.T @ weight"},),
    ),
    Fault(
        "NCCL: queue writes one slot late",
        ("test_embedding_queue.py", "test_nccl.py"),
        ({"(self.position + torch.arange(": "(self.position + 1 + torch.arange("},),
    ),
    Fault(
        "UniBCT: propagation along the transposed edges",
        ("test_refinement.py", "test_unibct.py"),
        ({"- propagation * edges.mT": "- propagation * edges"},),
    ),
    Fault(
        "MixBCT: new and old rows swapped",
        ("test_mixbct.py",),
        ({"torch.where(replaced[:, None], old, new)": "torch.where(replaced[:, None], new, old)"},),
    ),
    Fault(
        "MixBCT: rows that are not credible are mixed in",
        ("test_mixbct.py",),
        ({"masked_fill(~credible, -1.0)": "masked_fill(credible, -1.0)"},),
    ),
    Fault(
        "class mean divided by one image too few",
        ("test_statistics.py",),
        ({"sums / np.maximum(counts, 1)[:, None]": "sums / np.maximum(counts - 1, 1)[:, None]"},),
    ),
    Fault(
        "ArcFace: margin's sign",
        ("test_margins.py",),
        ({"* cosines - math.sin(self.m) * sines": "* cosines + math.sin(self.m) * sines"},),
    ),
    Fault(
        "CosFace: margin's sign",
        ("test_margins.py",),
        ({"self.s * (cosines - self.m)": "self.s * (cosines + self.m)"},),
    ),
    Fault(
        "sampler: two ranks read the same rows",
        ("test_samplers.py",),
        ({"step * self.images_per_step + self.rank * self.batch_size": "step * self.images_per_step"},),
    ),
    Fault(
        "gradient accumulation: sum in place of the mean",
        ("test_trainer.py",),
        ({".sum() / config.gradient_acc": ".sum()"}, {".sum() / settings.gradient_acc": ".sum()"}),
    ),
    Fault(
        "resume forgets the optimizer's state",
        ("test_resume.py",),
        (
            {
                "dcp.load(state | random, checkpoint_id=path)": (
                    "dcp.load({k: v for k, v in state.items() if 'optimizer' not in k} | random, checkpoint_id=path)"
                )
            },
            {
                "dcp.load(state | random, ": (
                    "dcp.load({k: v for k, v in state.items() if 'optimizer' not in k} | random, "
                )
            },
        ),
    ),
    Fault(
        "weights that do not fit the network are loaded",
        ("test_weights.py", "test_encoder.py"),
        (
            {
                "if shapes_of(state_dict) != expected:": "if not expected.keys() & state_dict.keys():",
                ".load_state_dict(state_dict)\n    return module": (
                    ".load_state_dict(state_dict, strict=False)\n    return module"
                ),
            },
            {
                "if shapes_of(state_dict) != expected:": "if not expected.keys() & state_dict.keys():",
                "if tensor.is_floating_point() and not state_dict[name]": (
                    "if name in state_dict and tensor.is_floating_point() and not state_dict[name]"
                ),
                ".load_state_dict(state_dict)\n    require_sound": (
                    ".load_state_dict(state_dict, strict=False)\n    require_sound"
                ),
            },
        ),
    ),
    Fault(
        "IJB: mirrored images left out of the template features",
        ("test_ijb_protocol.py",),
        ({"features += embeddings.mirrored[rows]": "features += embeddings.plain[rows]"},),
    ),
    Fault(
        "IJB 1:N: rank one too good",
        ("test_ijb_protocol.py",),
        (
            {"(scores >= own).view(np.int8)": "(scores > own).view(np.int8)"},
            {"(scores >= own).sum(axis=1)": "(scores > own).sum(axis=1)"},
        ),
    ),
    Fault(
        "IJB 1:1: threshold lets one impostor pair fewer pass",
        ("test_ijb_protocol.py",),
        ({"impostor[num_impostors - 1 - min(": "impostor[num_impostors - min("},),
    ),
    Fault(
        "IJB 1:1: sides of a cross-test swapped",
        ("test_ijb_protocol.py", "test_ijbc_eval_tool.py"),
        (
            {
                "pair_scores(gallery_templates, query_templates, pairs)": (
                    "pair_scores(query_templates, gallery_templates, pairs)"
                )
            },
        ),
    ),
    Fault(
        "revisited Oxford: junk stays in the ranked list",
        ("test_revisited.py",),
        ({"return places - np.searchsorted(junk_places, places)": "return places"},),
    ),
    Fault(
        "verification: threshold chosen on the tested fold too",
        ("test_verification_sets.py",),
        ({"right.sum(axis=0) - right, axis=1": "right.sum(axis=0) + 0 * right, axis=1"},),
    ),
)


def main() -> int:
    """Plant the chosen faults, print the table, and return the exit status."""
    args = parse_arguments()
    faults = [fault for fault in FAULTS if any(word.lower() in fault.name.lower() for word in args.only)]
    if not faults:
        sys.exit("no fault has one of these words in its name")
    with tempfile.TemporaryDirectory(prefix="mutations_") as temporary:
        folder = Path(temporary)
        clean = write_tree(args.revision, folder / "clean")
        status, line = run_tests(clean, sorted({path for fault in faults for path in test_files(clean, fault)}))
        if status:
            sys.exit(f"without any fault the tests fail already: {line}")
        with ThreadPoolExecutor(args.jobs) as jobs:
            results = list(jobs.map(lambda fault: examine(fault, args, folder), faults))
    caught = sum(results)
    print(f"\n{caught} of {len(faults)} faults caught ({args.revision or 'working tree'})")
    return int(caught < len(faults))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Plant faults in the product and see whether the tests catch them.")
    parser.add_argument("--revision", help="a git revision (default: the working tree as it is)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="faults with one of these in the name")
    parser.add_argument("--jobs", type=int, default=1, help="faults that are tried at a time")
    parser.add_argument("--all-tests", action="store_true", help="try survivors once more against the whole suite")
    return parser.parse_args()


def examine(fault: Fault, args: argparse.Namespace, folder: Path) -> bool:
    """Plant one fault in a copy of its own and print the outcome; returns whether the tests caught it."""
    tree = write_tree(args.revision, folder / re.sub(r"\W+", "_", fault.name))
    problem = plant(fault, tree)
    if problem:
        print(f"NOT PLANTED  {fault.name}: {problem}", flush=True)
        return False
    status, line = run_tests(tree, test_files(tree, fault))
    if status == 0 and args.all_tests:
        status, line = run_tests(tree, [])
    outcome = {0: "SURVIVED", 1: "caught"}.get(status, f"STATUS {status}")
    print(f"{outcome:<12} {fault.name}: {line}", flush=True)
    return status == 1


def plant(fault: Fault, tree: Path) -> str:
    """Make the replacements of the first form that fits; returns what is wrong if none does."""
    texts = {path: path.read_text() for room in ROOMS for path in (tree / room).rglob("*.py")}
    for form in fault.forms:
        places = {old: [path for path, text in texts.items() if old in text] for old in form}
        if not all(places.values()):
            continue
        for old, new in form.items():
            paths = places[old]
            if len(paths) > 1 or texts[paths[0]].count(old) > 1:
                return f"{old!r} occurs more than once"
            paths[0].write_text(paths[0].read_text().replace(old, new))
        return ""
    return f"none of its texts is there, first {next(iter(fault.forms[0]))!r}: add the text that the code has now"


def test_files(tree: Path, fault: Fault) -> list[str]:
    """The fault's test files in the tree; the run ends if there is none."""
    found = sorted(str(path.relative_to(tree)) for name in fault.tests for path in (tree / "ci" / "tests").rglob(name))
    if not found:
        sys.exit(f"{fault.name}: there is no test file {' or '.join(fault.tests)}")
    return found


def run_tests(tree: Path, files: list[str]) -> tuple[int, str]:
    """pytest's status for the files (none: the whole suite), and the first failed test or the last line."""
    log = tree.with_suffix(".txt")
    process: subprocess.Popen = start(tree, log, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files)
    status = process.wait()
    lines = log.read_text(errors="replace").splitlines() or ["no output"]
    return status, next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])[:150]


if __name__ == "__main__":
    sys.exit(main())
