"""What the tests of the sharded head share: heads and batches to try, and the plain softmax classifier beside them."""

import pytest
import torch
from torch.nn.functional import log_softmax, normalize

from core.heads import PartialFC
from core.heads.margins import ArcFace, CosFace, Softmax

D = 6
MARGINS = {"arcface": (ArcFace(), False), "cosface": (CosFace(s=30.0, m=0.3), False), "softmax": (Softmax(), True)}

BOTH_WAYS = pytest.mark.parametrize("recompute", [False, True], ids=["logits kept", "logits computed again"])


def batch(step, num_classes):
    """The global batch of a step: some ignored, classes repeated, the first and the last class there."""
    generator = torch.Generator().manual_seed(step)
    labels = [torch.tensor([0, num_classes - 1, -1, 1, 1, 0, -1]), torch.tensor([num_classes - 1, 0, -1])][step]
    return torch.randn(len(labels), D, generator=generator, dtype=torch.float64), labels


def run_step(head, embeddings, labels):
    """Loss, gradients and place of this rank's shard."""
    embeddings = embeddings.to(head.weight.dtype, copy=True).requires_grad_()
    given = labels.clone()
    head.zero_grad()
    loss = head(embeddings, labels)
    loss.backward()
    return {
        "loss": loss.detach(),
        "embeddings": embeddings.grad,
        "weight": head.weight.grad.to_dense().clone(),
        "bias": None if head.bias is None else head.bias.grad.to_dense().clone(),
        "labels kept": torch.equal(labels, given),
    }


def make_head(name, num_classes, dtype, rate=1.0, group=None):
    torch.manual_seed(5)
    margin, bias = MARGINS[name]
    head = PartialFC(margin, D, num_classes, sample_rate=rate, bias=bias, group=group).to(dtype)
    # Class weights of different lengths: gradients must take them into account.
    place = torch.arange(head.class_start, head.class_start + head.num_local)
    with torch.no_grad():
        head.weight.mul_((1.0 + place).to(dtype).unsqueeze(1))
    return head


def reference(name, embeddings, weight, bias, labels, limit=None):
    """Loss and gradients of the plain softmax classifier in float64, margins by the arc cosine.

    Cosines of other classes above `limit`, if there is one, are left out.
    """
    leaves = [t.double().clone().requires_grad_() for t in (embeddings, weight) + (() if bias is None else (bias,))]
    kept = labels >= 0
    if name == "softmax":
        logits = (leaves[0] @ leaves[1].T + leaves[2])[kept]
    else:
        cosines = (normalize(leaves[0]) @ normalize(leaves[1]).T)[kept]
        own = torch.zeros_like(cosines)
        own[torch.arange(len(cosines)), labels[kept]] = 1.0
        if name == "arcface":
            logits = 64.0 * torch.cos(torch.arccos(cosines) + 0.5 * own)
        else:
            logits = 30.0 * (cosines - 0.3 * own)
        if limit is not None:
            logits = logits.masked_fill((cosines > limit) & (own == 0), -torch.inf)
    loss = -log_softmax(logits, 1)[torch.arange(len(logits)), labels[kept]].mean()
    gradients = torch.autograd.grad(loss, leaves)
    return {"loss": loss.detach()} | dict(zip(("embeddings", "weight", "bias"), gradients))
