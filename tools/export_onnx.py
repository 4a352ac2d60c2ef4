"""Write a model as one ONNX file, checked against PyTorch before it gets its name.

python tools/export_onnx.py -m work_dirs/mixbct_r50 -o r50.onnx
python tools/export_onnx.py -m backbone.pt -net r18 -o r18.onnx
python tools/export_onnx.py -m work_dirs/glyphs_procrustes -o query.onnx    (a map: its base model and the map in one)
"""

import logging

from command_line import ArgumentParser, add_preprocessing_arguments, preprocessing

from core.errors import run_program
from core.logs import set_up_logging
from core.models.encoder import load_encoder
from core.models.export import export_onnx
from core.outputs import require_replaceable

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, export, and say what was written."""
    parser = ArgumentParser("Write a model as one ONNX file, checked against PyTorch before it gets its name.")
    parser.add_argument("-m", "--model", required=True, help="run folder of a model or a map, or .pt file of weights")
    parser.add_argument("-net", "--network", help="network of a .pt file, for example r50")
    add_preprocessing_arguments(parser)
    parser.add_argument("-o", "--output", required=True, help="file to write; its folder must exist")
    args = parser.parse_args()
    set_up_logging()
    require_replaceable(args.output)
    encoder = load_encoder(args.model, args.network, **preprocessing(args))
    difference = export_onnx(encoder, args.output)
    logger.info(
        "%s: %s, %d numbers an image of %dx%d, largest difference to PyTorch %.1e",
        args.output, encoder.network, encoder.embedding_size, encoder.image_size, encoder.image_size, difference,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
