"""What every training program does: it reads its command line and settings, joins its ranks, and trains."""

import logging
import runpy
import sys
from pathlib import Path

from core.engine.method import Method
from core.engine.trainer import Trainer
from core.errors import UserError
from core.evaluation.validation import Validation
from core.logs import set_up_logging
from core.parallel.ranks import process_group
from core.settings import describe, load_settings, split_arguments

__all__ = ["load_method", "train_program"]

logger = logging.getLogger(__name__)
HELP = """usage: train.py [-h] config [key=value ...]

{description}

positional arguments:
  config      config file, for example configs/glyphs.py
  key=value   settings that replace the config's

settings:

{settings}
"""


def load_method(program: Path) -> Method:
    """The method that a training program, a `train.py`, trains with."""
    defined = (value for value in runpy.run_path(str(program)).values() if isinstance(value, type))
    (kind,) = {value for value in defined if issubclass(value, Method) and value is not Method}
    return kind()


def train_program(method: Method, program: str, description: str | None) -> None:
    """Run the training that the command line asks for.

    `program` is the path of the program's `train.py`: its folder's name is the method's.
    """
    name = Path(program).resolve().parent.name
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(description=description or "", settings=describe(method.settings_type)), end="")  # noqa: T201
        return
    config, overrides = split_arguments(arguments)
    beside = Path(program).resolve().parent / config
    if beside.is_file() and not Path(config).is_file():
        raise UserError(f"config not found: {config} (looked in {Path.cwd()}); is {beside} meant?")
    set_up_logging()
    settings = load_settings(config, overrides, method.settings_type)
    with process_group(settings.device) as ranks:
        logger.info("%s on %d x %s", name, ranks.world_size, ranks.device.type)
        Trainer(settings, method, name, ranks, Validation).train()
