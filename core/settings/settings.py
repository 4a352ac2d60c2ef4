"""Every setting that the training programs share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from core.files import resolve
from core.settings.keys import key

__all__ = ["ProgramSettings", "Settings", "run_folder"]


class ProgramSettings(Protocol):
    """What the settings of every program have."""

    @property
    def output(self) -> str | None: ...  # noqa: D102

    @property
    def device(self) -> Literal["auto", "cuda", "cpu"]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a training. A method adds its own in a subclass, beside its loss.

    Names are those of InsightFace's arcface_torch where it has one. Paths are relative to the repository root.
    """

    rec: str | None = key(
        None,
        "training images: records (prefix, .rec file or folder), an image list, or WebDataset shards (their folder)",
        heading="Data",
        path="input",
    )
    num_classes: int | None = key(None, "read from the images; where it is set, they must have so many", minimum=1)
    num_image: int | None = key(None, "the same for the number of images", minimum=1)
    image_root: str | None = key(
        None, "folder that the paths of an image list start from; None: the list's own", path="input"
    )
    bad_images: Literal["error", "skip"] = key(
        "error",
        "what to do about missing or undecodable files of a list, and images of shards; skip: left out, or replaced",
    )
    image_size: int | None = key(
        None, "side of the network's input in pixels; None: that of the stored images", minimum=1, maximum=8192
    )
    normalization: Literal["face", "imagenet"] = key("face", "mean and std of the input; face: 127.5 for both")
    augment: tuple[str, ...] = key(("flip",), "of core.images.transforms.AUGMENTATIONS, in this order")
    num_workers: int = key(4, "processes a rank that read and decode; 0: the training process itself", minimum=0)

    decode_on: Literal["workers", "device"] = key(
        "workers", "where JPEGs become pixels: in the processes that read them, or in batches on the device (nvJPEG)"
    )

    network: str = key("r50", "a name of core.backbones.list_backbones()", heading="Model")
    network_options: dict[str, Any] = key(
        {}, "more arguments of build_backbone; one alone is set as network_options.width=16"
    )
    embedding_size: int = key(512, "D", minimum=1, maximum=65536)
    weights: str | None = key(
        None, "run folder, .pt, .pth or .safetensors that the backbone starts from; None: random weights", path="input"
    )
    head_weights: str | None = key(
        None,
        "run folder, arcface_torch's folder, file, or pattern softmax_fc_gpu_*.pt that the classifier starts from",
        path="input",
    )
    sample_rate: float = key(
        1.0, "share of the class weights that take part in a step (Partial FC)", above=0, maximum=1
    )
    sampled_epochs: int | None = key(
        None, "first epochs, in which sample_rate holds; later steps use all classes; None: it always holds", minimum=0
    )
    recompute_logits: bool = key(
        False, "keep no logits for the backward pass, but compute them again: less memory, a third more products"
    )
    interclass_filtering_threshold: float = key(
        0.0,
        "cosines with other classes above it are left out of the softmax, as mistakes of the labels; 0: none are",
        minimum=0,
        maximum=1,
    )
    loss: Literal["arcface", "cosface", "softmax"] = key(
        "arcface",
        "of the head; softmax: a linear classifier on the plain embedding",
        synonyms={"crossentropy": "softmax", "ce": "softmax"},
    )
    margin_scale: float = key(64.0, "s of ArcFace and CosFace")
    margin: float = key(0.5, "m of ArcFace, radians, or of CosFace")
    classifier_bias: bool = key(True, "softmax: a bias for every class")

    old_model: str | None = key(
        None,
        "run folder, .pt or .onnx",
        heading="The old model that the new one must stay compatible with (methods only)",
        path="input",
    )
    old_network: str | None = key(None, "its network, when old_model is a bare .pt")
    old_mean: str | float | tuple[float, ...] | None = key(
        None, "mean of its input, 0 to 255: one number, three by channel, or face, imagenet; None: the model's own"
    )
    old_std: str | float | tuple[float, ...] | None = key(None, "the same for the standard deviation")
    old_channel_order: Literal["RGB", "BGR"] | None = key(None, "of its input; None: the model's own")
    features: str | None = key(
        None, "folder of its embeddings of the training images; None: made under features/", path="output"
    )

    optimizer: Literal["sgd", "adamw"] = key("sgd", "of backbone, head and method", heading="Optimisation")
    lr: float = key(0.1, "for the batch of all ranks as it is: never scaled by itself", minimum=0)
    momentum: float = key(0.9, "SGD", minimum=0)
    weight_decay: float = key(5e-4, "of all parameters", minimum=0)
    batch_size: int = key(128, "images a rank and micro-batch", minimum=1)
    gradient_acc: int = key(1, "micro-batches a step; their gradients are averaged", minimum=1)
    num_epoch: int = key(35, "epochs of the whole training", minimum=1)
    warmup_epoch: int = key(0, "epochs of linear warm-up", minimum=0, synonyms={"-1": 0})
    schedule: Literal["polynomial", "step", "cosine"] = key(
        "polynomial", "of lr, evaluated at every step", synonyms={"poly": "polynomial", "multistep": "step"}
    )
    schedule_power: float = key(2.0, "polynomial: lr * (1 - progress) ** power", minimum=0)
    schedule_epochs: tuple[int | float, ...] = key(
        (5, 10, 20), "step: the epochs at which lr is multiplied by schedule_gamma"
    )
    schedule_gamma: float = key(0.1, "step: the factor of lr", minimum=0)
    clip_norm: float = key(5.0, "largest gradient norm of the backbone; 0: any", minimum=0)

    device: Literal["auto", "cuda", "cpu"] = key(
        "auto",
        "auto: cuda if there is one",
        heading="Execution",
        synonyms={"gpu": "cuda"},
        advice="GPUs are chosen with CUDA_VISIBLE_DEVICES",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = key(
        "auto",
        "fp16: loss scaled; auto: on CUDA bf16 or else fp16, on a CPU bf16 where it is measured to be faster, or fp32",
        synonyms={"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "16": "fp16", "float32": "fp32", "32": "fp32"},
    )
    compile: bool = key(False, "torch.compile the backbone")
    seed: int = key(666, "of weights, order of images, augmentation and draws", minimum=0, maximum=2**32 - 1)

    output: str | None = key(
        None,
        "run folder; None: work_dirs/<name of the config>",
        heading="Run folder, logs, checkpoints",
        path="output",
    )
    resume: bool = key(
        True,
        "go on from the last checkpoint in the run folder if there is one; False: empty it, start over",
        advice="to go on with a run, name its folder as output; to begin a new one from its model, set weights",
    )
    checkpoint_steps: int = key(
        2000, "steps between checkpoints; one is also written at the end of every epoch", minimum=1
    )
    frequent: int = key(20, "steps between log lines", minimum=1)
    verbose: int = key(2000, "steps between verification tests", minimum=1)
    rec_val: str | None = key(None, "folder with the verification sets <name>.bin", path="input")
    val_targets: tuple[str, ...] = key((), 'their names, for example ("lfw", "cfp_fp", "agedb_30")')

    @property
    def run_folder(self) -> Path:
        """The path of `output`, which a loaded config always has."""
        return run_folder(self.output)


def run_folder(output: str | None) -> Path:
    """The path of `output`, which a loaded config always has."""
    assert output is not None, "settings that no config file gave name no run folder"
    return resolve(output)
