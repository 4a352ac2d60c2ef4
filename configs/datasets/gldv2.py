"""GLDv2-clean with the released settings of AdvBCT's benchmark, 4 GPUs with 256 images each; all models of it.

Smaller GPUs: docs/landmarks.md has the settings, and what of the release no setting gives.

Lists: tools/prepare_gldv2.py makes train_clean.txt, tools/split_dataset.py the parts of it. Extended backbone comes in
two forms: EXclass and EXdata to resnet50, where the new model sees all images, as in the published table (which has one
independent resnet50 for both splits), and EXbackbone_class and _data, where it sees the old model's images.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/gldv2/train_clean.txt"
config.image_root = "datasets/gldv2"
config.image_size = 224
config.normalization = "imagenet"
config.augment = ()  # images are resized alone
config.num_workers = 8
config.network = "resnet18"
config.network_options = edict(pretrained="imagenet")  # or the path of torchvision's file
config.embedding_size = 256
config.loss = "softmax"  # "arcface" and "cosface" with the s and m below
config.classifier_bias = False
config.margin_scale = 30.0
config.margin = 0.3
config.num_epoch = 30
config.batch_size = 256
config.lr = 0.1
config.weight_decay = 5e-4
config.schedule = "step"
config.schedule_epochs = (5, 10, 20)
config.schedule_gamma = 0.1
config.clip_norm = 0  # the release clips no gradient,
config.precision = "fp32"  # uses no mixed precision,
config.seed = 1234  # and has this seed
