"""What every training program does: it reads its command line and settings, joins its ranks, and trains or fits."""

import logging
import runpy
import sys
from pathlib import Path
from typing import TypeVar

from core.engine.map_fitting import fit_maps
from core.engine.map_method import MapMethod
from core.engine.method import Method
from core.engine.run_folder import RunFolder
from core.engine.trainer import Trainer
from core.errors import UserError
from core.evaluation.validation import Validation
from core.logs import set_up_logging
from core.parallel.ranks import LONG_PATIENCE, process_group
from core.settings import ProgramSettings, describe, load_settings, split_arguments

__all__ = ["load_method", "map_program", "train_program"]

logger = logging.getLogger(__name__)
S = TypeVar("S", bound=ProgramSettings)
HELP = """usage: train.py [-h] config [key=value ...]

{description}

positional arguments:
  config      config file, for example configs/glyphs.py
  key=value   settings that replace the config's

settings:

{settings}
"""


def load_method(program: Path) -> Method | MapMethod:
    """The method that a program, a `train.py`, trains or fits with."""
    defined = (value for value in runpy.run_path(str(program)).values() if isinstance(value, type))
    (kind,) = {value for value in defined if issubclass(value, Method | MapMethod) and value.__module__ == "<run_path>"}
    return kind()


def train_program(method: Method, program: str, description: str | None) -> None:
    """Run the training that the command line asks for.

    `program` is the path of the program's `train.py`: its folder's name is the method's.
    """
    settings = _read_command_line(method.settings_type, program, description)
    if settings is None:
        return
    name = Path(program).resolve().parent.name
    with process_group(settings.device) as ranks:
        logger.info("%s on %d x %s", name, ranks.world_size, ranks.device.type)
        with RunFolder(settings.run_folder).claimed(f"training of {name}", ranks):
            Trainer(settings, method, name, ranks, Validation).train()


def map_program(method: MapMethod, program: str, description: str | None) -> None:
    """Fit the map that the command line asks for; `program` as in `train_program`."""
    settings = _read_command_line(method.settings_type, program, description)
    if settings is None:
        return
    name = Path(program).resolve().parent.name
    with process_group(settings.device, LONG_PATIENCE) as ranks:  # the first one trains the map alone
        logger.info("%s on %d x %s", name, ranks.world_size, ranks.device.type)
        with RunFolder(settings.run_folder).claimed(f"fit of {name}", ranks):
            fit_maps(settings, method, name, ranks)


def _read_command_line(settings_type: type[S], program: str, description: str | None) -> S | None:
    """The settings of the command line; None if it only asks for help, which is then printed."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(description=description or "", settings=describe(settings_type)), end="")  # noqa: T201
        return None
    config, overrides = split_arguments(arguments)
    beside = Path(program).resolve().parent / config
    if beside.is_file() and not Path(config).is_file():
        raise UserError(f"config not found: {config} (looked in {Path.cwd()}); is {beside} meant?")
    set_up_logging()
    return load_settings(config, overrides, settings_type)
