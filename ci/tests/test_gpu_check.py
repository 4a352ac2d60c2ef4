"""The check of a GPU, at tiny sizes on the CPU: all its parts pass, and it finds planted faults."""

import json
import subprocess
import sys

import pytest
import torch
from launching import load_program

import ci.gpu.embeddings
import core.models.encoder
from ci.gpu.report import Report
from ci.gpu.steps import Sizes
from ci.gpu.throughput import Throughput
from ci.scale_simulation import Job, memory_bytes
from core.files import ROOT
from core.heads.margins import ArcFace
from core.images import transforms

gpu_check = load_program(ROOT / "ci" / "gpu_check.py")
ALL_MISSING = """
import runpy, sys
sys.path[:0] = [{root!r}]
import ci.gpu.stand_ins
ci.gpu.stand_ins.is_missing = lambda package: True
sys.argv = ["gpu_check.py", "--quick", "--device", "cpu", "--part", "losses", "vectors"]
runpy.run_path({program!r}, run_name="__main__")
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def check(tmp_path, *parts: str) -> tuple[int, list[dict]]:
    """The number of failed checks, and the lines."""
    failed = gpu_check.check(parts, True, "cpu", 500.0, tmp_path / "out.json")
    return failed, json.loads((tmp_path / "out.json").read_text())["results"]


def test_all_parts_pass_on_the_cpu(tmp_path):
    failed, results = check(tmp_path, *gpu_check.PARTS)
    assert failed == 0
    left_out = {result["name"]: result["detail"] for result in results if result["outcome"] == "left out"}
    assert left_out == {
        "compiled, fp32": "quick",
        "compiled, bf16": "quick",
        "waits, fp32": "needs CUDA",
        "waits, bf16, sampled head": "needs CUDA",
        "waits, fp16, AdamW": "needs CUDA",
        "C 50 rate 1.0, memory": "needs CUDA",
        "C 50 rate 0.1, memory": "needs CUDA",
    }
    methods = {result["name"] for result in results if result["part"] == "losses"}
    assert methods == set("advbct bct hot_refresh l2 lce mixbct nccl unibct".split())
    speeds = [result["values"] for result in results if result["name"].startswith("r18 C 50 ")]
    assert len(speeds) == 7 and all(0 < values["images_per_second"] for values in speeds)
    assert [values["times_plain"] for values in speeds].count(1.0) == 1


def test_planted_faults_fail_and_the_other_checks_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(ArcFace, "target_logits", lambda self, cosines: self.s * (cosines - 0.01))
    monkeypatch.setitem(transforms.AUGMENTATIONS, "noise", lambda images: images.missing)
    failed, results = check(tmp_path, "heads", "images")
    outcomes = {result["name"]: result["outcome"] for result in results}
    assert {name for name, outcome in outcomes.items() if outcome == "FAILED"} == {
        "margin ArcFace", "partial FC, ArcFace, rate 1.0", "partial FC, ArcFace, rate 0.3", "noise",
        "partial FC, ArcFace, logits computed again, rate 1.0", "partial FC, ArcFace, logits computed again, rate 0.3",
        "partial FC, ArcFace, beside half precision",
        "flip + affine + light + noise + occlusion",
    }  # fmt: skip
    assert failed == 8 and outcomes["margin CosFace"] == outcomes["flip"] == "ok"


def test_wrong_pixels_and_prototypes_fail(tmp_path, monkeypatch):
    normalize, refined = core.models.encoder.normalize, ci.gpu.embeddings.refined_prototypes
    monkeypatch.setattr(core.models.encoder, "normalize", lambda *given: 1.01 * normalize(*given))
    monkeypatch.setattr(ci.gpu.embeddings, "refined_prototypes", lambda *given: refined(*given).roll(1, 0))
    failed, results = check(tmp_path, "embeddings")
    wrong = {result["name"] for result in results if result["outcome"] == "FAILED"}
    assert failed == 3 and wrong == {"encoder r18", "encoder vit_t", "refined prototypes"}


@pytest.mark.parametrize("share, outcome", [(1.09, "ok"), (1.11, "FAILED"), (0.91, "ok"), (0.89, "FAILED")])
def test_head_fails_that_needs_a_tenth_more_memory_than_planned_or_less(monkeypatch, share, outcome):
    planned = memory_bytes(Job(1, 50, 0.1, batch=4, embedding=8))
    head = sum(planned.values()) - planned["backbone"]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000.0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000.0 + share * head)
    throughput = Throughput(torch.device("cpu"), Sizes(16, 4, 8), 0.01)
    report = Report(100.0)
    report.check("head", "memory", lambda: throughput.check_head_memory(50, 0.1))
    assert [result.outcome for result in report.results] == [outcome]


def test_what_there_is_no_time_for_is_left_out(capsys):
    assert gpu_check.check(["heads"], True, "cpu", 0.0, None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "left out" in lines[1] and lines[1].endswith("time")
    assert lines[-1].startswith("0 ok, 0 FAILED, ")


def test_other_packages_may_be_missing():
    program = ALL_MISSING.format(root=str(ROOT), program=str(ROOT / "ci" / "gpu_check.py"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exact search" in done.stdout and "faiss is not installed" in done.stdout
    assert "threadpoolctl is not installed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("9 ok, 0 FAILED, 5 left out")
