"""Every setting of the training programs with its default. Other configs name only what differs.

Names are those of InsightFace's arcface_torch where it has one. Paths are relative to the repository root.
"""

from easydict import EasyDict as edict

config = edict()

# Data
config.rec = None  # training images: the common prefix of a .rec and an .idx file, or an image list .txt (required)
config.image_root = None  # folder that the paths of an image list start from; None: the list's own
config.bad_images = "error"  # missing or undecodable files of a list: "error", or "skip": left out, or replaced
config.image_size = None  # side of the network's input in pixels; None: that of the stored images
config.normalization = "face"  # mean and std of the input: "face" (127.5, 127.5) or "imagenet"
config.augment = ("flip",)  # of core.images.transforms.AUGMENTATIONS, in this order
config.num_workers = 4  # processes a rank that read and decode; 0: the training process itself

# Model
config.network = "r50"  # a name of core.backbones.list_backbones()
config.network_options = edict()  # more arguments of build_backbone, for example width and depth
config.embedding_size = 512  # D
config.sample_rate = 1.0  # share of the class weights that take part in a step (Partial FC)
config.loss = "arcface"  # of the head: "arcface", "cosface" or "softmax", a linear classifier on the plain embedding
config.margin_scale = 64.0  # s of ArcFace and CosFace
config.margin = 0.5  # m of ArcFace, radians, or of CosFace
config.classifier_bias = True  # softmax: a bias for every class

# The old model that the new one must stay compatible with (methods only)
config.old_model = None  # run folder, .pt or .onnx
config.old_network = None  # its network, when old_model is a bare .pt
config.features = None  # folder of its embeddings of the training images; None: made under features/

# Optimisation
config.optimizer = "sgd"  # "sgd" or "adamw"
config.lr = 0.1  # for the batch of all ranks as it is: never scaled by itself
config.momentum = 0.9  # SGD
config.weight_decay = 5e-4
config.batch_size = 128  # images a rank and micro-batch
config.gradient_acc = 1  # micro-batches a step; their gradients are averaged
config.num_epoch = 35
config.warmup_epoch = 0  # epochs of linear warm-up
config.schedule = "polynomial"  # "polynomial", "step" or "cosine", evaluated at every step
config.schedule_power = 2.0  # polynomial: lr * (1 - progress) ** power
config.schedule_epochs = (5, 10, 20)  # step: the epochs at which lr is multiplied by schedule_gamma
config.schedule_gamma = 0.1
config.clip_norm = 5.0  # largest gradient norm of the backbone; 0: any

# Execution
config.device = "auto"  # "auto" (cuda if there is one), "cuda" or "cpu"
config.precision = "auto"  # "bf16", "fp16" (loss scaled), "fp32"; auto: bf16 or else fp16 on CUDA, fp32 on the CPU
config.compile = False  # torch.compile the backbone
config.seed = 666

# Run folder, logs, checkpoints
config.output = None  # run folder; None: work_dirs/<name of the config>
config.resume = True  # go on from the last checkpoint in the run folder if there is one; False: empty it, start over
config.checkpoint_steps = 2000  # steps between checkpoints; one is also written at the end of every epoch
config.frequent = 20  # steps between log lines
config.verbose = 2000  # steps between verification tests
config.rec_val = None  # folder with the verification sets <name>.bin
config.val_targets = ()  # their names, for example ("lfw", "cfp_fp", "agedb_30")
