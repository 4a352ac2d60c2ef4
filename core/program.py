"""What every training program is made of: its command line, its settings, its ranks, and the training."""

import logging
import sys
from pathlib import Path

from core.engine.method import Method
from core.engine.trainer import Trainer
from core.errors import UserError
from core.evaluation.validation import Validation
from core.logs import set_up_logging
from core.parallel.ranks import process_group
from core.settings import default_settings, load_config

__all__ = ["train_program"]

logger = logging.getLogger(__name__)
HELP = """usage: train.py [-h] config [key=value ...]

{description}

positional arguments:
  config      config file, for example configs/glyphs.py
  key=value   settings that replace the config's

settings and their defaults:
{settings}
"""


def train_program(method: Method, program: str, description: str) -> None:
    """Run the training that the command line asks for.

    `program` is the path of the program's `train.py`: its folder's name is the method's, and `configs/base.py` beside
    it holds the method's own settings.
    """
    folder = Path(program).resolve().parent
    base = folder / "configs" / "base.py"
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(description=description, settings=default_settings(base)), end="")  # noqa: T201
        return
    options = [argument for argument in arguments if argument.startswith("-")]
    if options:
        raise UserError(f"unknown option {options[0]}: settings are written key=value (see train.py --help)")
    if not arguments:
        raise UserError("no config is named, for example configs/glyphs.py (see train.py --help)")
    set_up_logging()
    config = load_config(arguments[0], arguments[1:], base)
    with process_group(config.device) as ranks:
        logger.info("%s on %d x %s", folder.name, ranks.world_size, ranks.device.type)
        Trainer(config, method, folder.name, ranks, Validation).train()
