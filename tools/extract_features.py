"""Embed training images with a model: one row an image, in the order of the data.

python tools/extract_features.py --model work_dirs/glyphs_old --rec datasets/glyphs/train_part_70_class
torchrun --nproc_per_node=8 tools/extract_features.py --model old.pt --network r18 --rec datasets/ms1mv3/train
python tools/extract_features.py --model old.pt --network resnet18 --rec datasets/gldv2/train_clean.txt
"""

from pathlib import Path

from command_line import ArgumentParser, add_preprocessing_arguments, preprocessing

from core.data.open_dataset import BAD_IMAGES, open_dataset
from core.embeddings.extraction import default_store_path, extract_embeddings, require_writable_store
from core.errors import UserError, run_program
from core.logs import set_up_logging
from core.models.encoder import load_encoder
from core.parallel.ranks import process_group


def main() -> None:
    """Make an embedding store, or go on with one that was interrupted."""
    parser = ArgumentParser(
        "Embed the images of a record file or an image list into a store; resumable, over any number of ranks."
    )
    parser.add_argument("-m", "--model", required=True, help="run folder, .pt state dict or .onnx file")
    parser.add_argument("-net", "--network", help="network of a .pt state dict")
    add_preprocessing_arguments(parser)
    parser.add_argument(
        "--rec", required=True, help="records (prefix, .rec file or its folder), an image list, or shards"
    )
    parser.add_argument("--image-root", help="folder that the paths of a list start from; without it the list's own")
    parser.add_argument(
        "--bad-images", choices=BAD_IMAGES, default="error", help="missing or undecodable files of a list"
    )
    parser.add_argument(
        "--out", type=Path, help="the store's folder; without it one below features/ is named by content"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="images a forward pass")
    parser.add_argument("--num-workers", type=int, default=2, help="processes a rank that read and decode images")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    args = parser.parse_args()
    if args.batch_size < 1 or args.num_workers < 0:
        raise UserError("--batch-size must be 1 or more and --num-workers 0 or more")
    if args.out is not None:
        require_writable_store(args.out)
    set_up_logging()
    with process_group(args.device) as ranks:
        encoder = load_encoder(args.model, args.network, ranks.device, **preprocessing(args))
        data = open_dataset(args.rec, encoder.image_size, args.image_root, args.bad_images == "skip")
        path = args.out or default_store_path(encoder, data)
        store = extract_embeddings(encoder, data, path, ranks, args.batch_size, args.num_workers)
        if ranks.is_first:
            print(f"{store.path}: {store.info.num_images} x {store.info.embedding_size}")


if __name__ == "__main__":
    run_program(main)
