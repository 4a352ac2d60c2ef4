"""The command line that every training program has: one config, then `key=value` overrides."""

import argparse
import logging
from pathlib import Path

from core.config import default_settings, load_config
from core.engine.distributed import process_group
from core.engine.method import Method
from core.engine.trainer import Trainer
from core.errors import ArgumentParser
from core.logs import set_up_logging

__all__ = ["train_program"]

logger = logging.getLogger(__name__)


def train_program(method: Method, program: str, description: str) -> None:
    """Run the training that the command line asks for.

    `program` is the path of the program's `train.py`: its folder's name is the method's, and `configs/base.py` beside
    it holds the method's own settings.
    """
    folder = Path(program).resolve().parent
    base = folder / "configs" / "base.py"
    parser = ArgumentParser(description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "settings and their defaults:\n" + default_settings(base)
    parser.add_argument("config", help="config file, for example configs/glyphs.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the config's")
    args = parser.parse_args()
    set_up_logging()
    config = load_config(args.config, args.overrides, base)
    with process_group(config.device) as ranks:
        logger.info("%s on %d x %s", folder.name, ranks.world_size, ranks.device.type)
        Trainer(config, method, folder.name, ranks).train()
