"""Programs in processes of their own, forked from a server that has imported torch: a start takes 0.1 seconds."""

import importlib.util
import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path
from types import ModuleType

import torch

SECONDS = 120
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["core.program", "torch._dynamo"])

FIRST_RANK_ALONE = """
import runpy, time
from torch import distributed
import {module}

join, work = distributed.init_process_group, {module}.{function}

def join_for_an_instant(*arguments, timeout, **options):
    join(*arguments, timeout=timeout / 3600, **options)

def work_for_long(*arguments, **options):
    time.sleep(3)
    return work(*arguments, **options)

distributed.init_process_group, {module}.{function} = join_for_an_instant, work_for_long
runpy.run_path({program!r}, run_name="__main__")
"""


class Launch:
    """A program that is running on some ranks, each rank a process whose stdout and stderr go to a file."""

    def __init__(
        self, program: Path, arguments: list[str], logs: Path, ranks: int = 1, environment: dict | None = None
    ):
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank{rank}.txt" for rank in range(ranks)]
        self.processes = []
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} if ranks > 1 else {}
        for rank, log in enumerate(self.logs):
            own = {**group, "RANK": str(rank)} if ranks > 1 else {}
            task = (str(program), list(map(str, arguments)), {**own, **(environment or {})}, str(log))
            self.processes.append(CONTEXT.Process(target=run_program_file, args=task))
            self.processes[-1].start()

    def wait(self, kill_others_after_first: bool = False) -> tuple[list[int], list[str]]:
        """Exit statuses and output by rank. A rank that is not done in time is killed (status -9)."""
        self.processes[0].join(SECONDS)
        for process in self.processes:
            if not kill_others_after_first:
                process.join(SECONDS)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes], [log.read_text() for log in self.logs]


def launch_with_long_work(program: Path, work: str, arguments: list, folder: Path) -> Launch:
    """A program on two ranks, in a world where an hour is a second and the first rank's `work` takes three.

    `work`: the module and the name of a function that the first rank alone calls while the others wait.
    """
    module, _, function = work.rpartition(".")
    wrapper = folder / "first_rank_alone.py"
    wrapper.write_text(FIRST_RANK_ALONE.format(module=module, function=function, program=str(program)))
    return Launch(wrapper, arguments, folder / "logs", ranks=2)


def free_port() -> str:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run_program_file(program: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """In the new process: run a program file as `python program arguments` would, in its folder."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    os.chdir(Path(program).parent)
    torch.set_num_threads(1)
    sys.argv = [program, *arguments]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


def load_program(path: Path) -> ModuleType:
    """A program file as a module, its main not run."""
    spec = importlib.util.spec_from_file_location(path.parent.name + "_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
