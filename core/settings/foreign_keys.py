"""Keys of other training programs, above all of InsightFace's arcface_torch, and what they are here.

A key that can mean only one thing is taken as that. For the others the error says what to write.
"""

from collections.abc import Callable
from typing import Any

from core.errors import UserError

__all__ = ["translate"]

RENAMED = {
    "feat_dim": "embedding_size",
    "feature_dim": "embedding_size",
    "emb_size": "embedding_size",
    "emb_dim": "embedding_size",
    "embedding_dim": "embedding_size",
    "embedding": "embedding_size",
    "num_features": "embedding_size",
    "backbone": "network",
    "arch": "network",
    "net": "network",
    "old_net": "old_network",
    "old_arch": "old_network",
    "old_model_path": "old_model",
    "m_old": "old_model",
    "head": "loss",
    "margin_loss": "loss",
    "loss_name": "loss",
    "margin_s": "margin_scale",
    "margin_m": "margin",
    "epochs": "num_epoch",
    "num_epochs": "num_epoch",
    "max_epoch": "num_epoch",
    "max_epochs": "num_epoch",
    "warmup_epochs": "warmup_epoch",
    "learning_rate": "lr",
    "wd": "weight_decay",
    "mom": "momentum",
    "lr_scheduler": "schedule",
    "scheduler": "schedule",
    "grad_acc": "gradient_acc",
    "gradient_accumulation": "gradient_acc",
    "gradient_accumulation_steps": "gradient_acc",
    "accumulation_steps": "gradient_acc",
    "clip_grad": "clip_norm",
    "clip_grad_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "workers": "num_workers",
    "work_dir": "output",
    "output_dir": "output",
    "out_dir": "output",
    "save_dir": "output",
    "out": "output",
    "val_sets": "val_targets",
    "log_interval": "frequent",
    "print_freq": "frequent",
}
"""Other names of keys, which have the same values."""

ABSENT = {
    "dali": "images are read by num_workers processes, without DALI",
    "dali_aug": "there is no DALI here: set augment",
    "using_wandb": "there is no Weights & Biases here: metrics are in metrics.jsonl and tensorboard/ of the run folder",
}
"""What is not here: without effect where it is switched off, an error where it is wanted."""

WITHOUT_EFFECT = {
    "save_all_states",  # checkpoints hold everything
    *("wandb_key", "wandb_entity", "wandb_project", "wandb_log_all", "wandb_resume", "suffix_run_name"),
    *("save_artifacts", "notes"),  # all of Weights & Biases
}

INSTEAD = {
    **dict.fromkeys(
        ("old_embedding", "old_embedding_label", "old_prototype", "credible_old_feature", "center_radius"),
        "what the old model gives is made by itself: name that model with old_model",
    ),
    **dict.fromkeys(
        ("data", "data_path", "data_dir", "dataset", "train_data", "train_rec", "train_path"),
        "name the training images with rec",
    ),
    **dict.fromkeys(
        ("pretrained", "pretrain", "checkpoint", "ckpt", "init_weights", "load_from", "finetune"),
        "a run goes on in its folder, output; a new one starts from given weights with weights",
    ),
    **dict.fromkeys(
        ("gpu", "gpus", "num_gpus", "gpu_ids", "world_size", "nproc_per_node"),
        "start the program with torchrun --nproc_per_node=NUMBER",
    ),
    **dict.fromkeys(
        ("decay_epoch", "milestones", "lr_steps", "lr_func"),
        "for steps of lr set schedule=step and schedule_epochs=(10,20)",
    ),
    **dict.fromkeys(("total_batch_size", "global_batch_size"), "batch_size is that of one rank"),
    **dict.fromkeys(("image_shape", "input_size", "input_shape", "img_size"), "set image_size, one number"),
    "base_lr": "lr holds for the batch of all ranks as it is and is never scaled: set that",
    "amp": "set precision: bf16, fp16 or fp32",
    "model": "name the network with network, a run folder with output, the old model with old_model",
    "s": "set margin_scale",
    "m": "set margin",
}
"""Keys that are never taken, and what to do."""


def translate(name: str, value: Any) -> dict[str, Any] | None:
    """The settings that a foreign key with this value stands for, none if it has no effect; None for an unknown key.

    `UserError` that says what to write, where it is known but not to be had with that value.
    """
    if name in RENAMED:
        return {RENAMED[name]: value}
    if name in TRANSLATIONS:
        return TRANSLATIONS[name](value)
    if name in WITHOUT_EFFECT:
        return {}
    if name in ABSENT:
        if value in (False, None, "", "False"):
            return {}
        raise UserError(f"{ABSENT[name]}: leave it out")
    if name in INSTEAD:
        raise UserError(INSTEAD[name])
    return None


def _precision(fp16: Any) -> dict[str, Any]:
    if fp16 not in (True, False):
        raise UserError("set precision: fp16, bf16 or fp32")
    return {"precision": "fp16" if fp16 else "fp32"}


def _margin(margins: Any) -> dict[str, Any]:
    """m_1, m_2, m_3 of cos(m_1 angle + m_2) - m_3: ArcFace has m_2 alone, CosFace m_3."""
    try:
        scale, angle, cosine = map(float, margins)
    except (TypeError, ValueError):
        raise UserError("set loss, and margin for its m") from None
    if scale == 1 and cosine == 0:
        return {"loss": "arcface", "margin": angle}
    if scale == 1 and angle == 0:
        return {"loss": "cosface", "margin": cosine}
    raise UserError(
        f"the combined margin {scale:g}, {angle:g}, {cosine:g} is not here: set loss=arcface margin={angle:g}, or "
        f"loss=cosface margin={cosine:g}"
    )


TRANSLATIONS: dict[str, Callable[[Any], dict[str, Any]]] = {"fp16": _precision, "margin_list": _margin}
