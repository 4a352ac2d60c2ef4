"""lambda-orthogonality regularisation for compatible representation learning (Ricci et al., NeurIPS 2025).

arXiv 2509.16664. Two finished models; an orthogonal map B carries the new one's embeddings n_i into the old one's
space, which loses nothing of them, and a map F carries old embeddings o_i to where B puts the new ones:

    L   = w_1 L_F + w_2 L_B + w_3 L_C + L_lambda
    L_F = mean_i |F(o_i) - B(n_i)|²        L_B = mean_i |B(n_i) - o_i|²
    L_C = contrast(F(o), B(n)) + contrast(F(o), o)
    contrast(a, b) = - mean_i mean_{j: y_j = y_i} log softmax_j(cos(a_i, b_j) / tau)

Strict: B = B_0 exp(P), P = -P', and no L_lambda. Relaxed, for images unlike those that the models were trained on: B is
affine, x W + b, and

    L_lambda = sigmoid(alpha (|W W' - I| - lambda)) |W W' - I|        (Frobenius norms)

lets W leave the orthogonal matrices by lambda and no further. B(n) searches old galleries, galleries mapped by F and
galleries embedded again by B(n), and mixtures of these: one space for all.

    python train.py configs/OPclass_ms1mv3_r18_to_r50_LambdaOrthogonality_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old new_model=work_dirs/glyphs_independent
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.utils.parametrizations import orthogonal

from core.engine.map_method import FittedMap, Fitting
from core.engine.map_training import PairBatch, Spread, TrainedMap, finished_map
from core.errors import run_program
from core.models.map_run import NEW_TO_OLD, OLD_TO_NEW, mapped_fingerprint
from core.models.maps import Map, Space, fit_map
from core.models.weights import fingerprint
from core.program import map_program
from core.settings import MapTrainingSettings, key


def contrast(a: Tensor, b: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the softmax over the cosines of a row of `a` with those of `b`, and its class, ().

    `a` and `b` are (B, D), `labels` (B,); the targets are all rows of the class, alike, the own image among them.
    """
    log_shares = (normalize(a) @ normalize(b).T / temperature).log_softmax(dim=1)
    same = (labels[:, None] == labels).float()
    return -((same * log_shares).sum(dim=1) / same.sum(dim=1)).mean()


def relaxed_orthogonality(weight: Tensor, threshold: float, sharpness: float) -> Tensor:
    """L_lambda of a square matrix, ()."""
    distance = torch.linalg.matrix_norm(weight @ weight.T - torch.eye(len(weight), device=weight.device))
    return torch.sigmoid(sharpness * (distance - threshold)) * distance


def completed(weight: Tensor) -> Tensor:
    """A square orthogonal matrix whose first rows and columns are `weight`, with orthonormal rows or columns."""
    rows, columns = weight.shape
    left, _, right = torch.linalg.svd(weight)
    missing = torch.eye(abs(rows - columns))
    return torch.block_diag(left, missing) @ right if rows < columns else left @ torch.block_diag(right, missing)


@dataclass(frozen=True, kw_only=True)
class LambdaOrthogonalitySettings(MapTrainingSettings):
    """lambda-orthogonality's own settings: lr and lambda as published."""

    lr: float = key(1e-3, "for the pairs of a step as they are", above=0)
    warmup_epoch: int = key(0, "epochs of linear warm-up; then lr falls as a cosine", minimum=0)
    num_epoch: int = key(20, "epochs of the whole training", minimum=1)
    relaxed: bool = key(
        False,
        "False: B is orthogonal; True: nearly, for images unlike those that the models were trained on",
        heading="lambda-orthogonality",
    )
    threshold: float = key(12.0, "lambda: how far W W' may be from I, relaxed", minimum=0)
    sharpness: float = key(10.0, "alpha: how steeply the price rises there", above=0)
    forward_weight: float = key(1.0, "w_1", minimum=0)
    backward_weight: float = key(1.0, "w_2", minimum=0)
    contrastive_weight: float = key(1.0, "w_3", minimum=0)
    temperature: float = key(0.1, "tau", above=0)


class LambdaOrthogonality(TrainedMap[LambdaOrthogonalitySettings]):
    """Holds B and F. They give vectors as long as the longer embedding; a shorter one counts as filled up by zeros."""

    directions = ()
    settings_type = LambdaOrthogonalitySettings

    def setup(self, run: Fitting[LambdaOrthogonalitySettings]) -> None:
        """Build B, at first the orthogonal map of the least L_B, and F, at first a ridge onto those B(n)."""
        self.settings, self.old_size, self.new_size = run.settings, run.old.size, run.new.size
        size = max(self.old_size, self.new_size)
        rotation = completed(_linear_of(fit_map("procrustes", run.new.features, run.old.features)).weight)
        ridge = _linear_of(fit_map("ridge", run.old.features, run.new.features))
        self.backward_map = nn.Linear(size, size)
        self.forward_map = nn.Linear(self.old_size, size)
        with torch.no_grad():
            self.backward_map.weight.copy_(rotation)
            self.backward_map.bias.zero_()
            self.forward_map.weight.copy_(rotation[:, : self.new_size] @ ridge.weight)
            self.forward_map.bias.copy_(rotation[:, : self.new_size] @ ridge.bias)
        if not self.settings.relaxed:
            orthogonal(self.backward_map, orthogonal_map="matrix_exp")  # B_0 exp(P)
            self.backward_map.bias.requires_grad_(False)

    def loss(self, batch: PairBatch) -> dict[str, Tensor]:
        """`forward`, `backward`, `contrastive` and, relaxed, `orthogonality`: the four terms with their weights."""
        settings, label, tau = self.settings, batch.label, self.settings.temperature
        weight = self.backward_map.weight
        aligned = linear(batch.new, weight[:, : self.new_size], self.backward_map.bias)
        lifted = self.forward_map(batch.old)
        in_old_space = lifted[:, : self.old_size]
        terms = {
            "forward": settings.forward_weight * (lifted - aligned).square().sum(dim=1).mean(),
            "backward": settings.backward_weight * (aligned[:, : self.old_size] - batch.old).square().sum(dim=1).mean(),
            "contrastive": settings.contrastive_weight
            * (contrast(lifted, aligned, label, tau) + contrast(in_old_space, batch.old, label, tau)),
        }
        if settings.relaxed:
            terms["orthogonality"] = relaxed_orthogonality(weight, settings.threshold, settings.sharpness)
        return terms

    def maps(self, run: Fitting[LambdaOrthogonalitySettings]) -> dict[str, FittedMap]:
        """B to the old space, F, and where that is wider, B to the space of F."""
        old, new = run.old, run.new
        rows = run.spread_rows()
        weight, bias = self.backward_map.weight.detach().cpu(), self.backward_map.bias.detach().cpu()
        narrow = _linear(weight[: self.old_size, : self.new_size], bias[: self.old_size])
        wide = _linear(weight[:, : self.new_size], bias)
        olds, news = Spread(old.unit_features(rows), old.space), Spread(new.unit_features(rows), new.space)
        if len(weight) == old.size:
            shared = old.space.fingerprint
        else:  # that of the model which embeds in this space, the run folder new_to_wide
            shared = mapped_fingerprint(new.encoder.fingerprint, fingerprint(wide.state_dict()))
        space = Space(len(weight), f"{old.space.name}, to which {new.space.name} is turned", shared)
        with torch.no_grad():
            aligned = Spread(wide(torch.from_numpy(news.vectors)).numpy(), space)
        kind, options = "lambda_orthogonality", {"relaxed": self.settings.relaxed}
        maps = {
            NEW_TO_OLD: FittedMap(finished_map(run, kind, narrow, options, news, olds), new, NEW_TO_OLD),
            OLD_TO_NEW: FittedMap(finished_map(run, kind, self.forward_map, options, olds, aligned), old, OLD_TO_NEW),
        }
        if len(weight) > old.size:
            maps["new_to_wide"] = FittedMap(finished_map(run, kind, wide, options, news, aligned), new, NEW_TO_OLD)
        return maps


def _linear_of(fitted: Map) -> nn.Linear:
    assert isinstance(fitted.module, nn.Linear)
    return fitted.module


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The map from x to weight x + bias."""
    module = nn.Linear(weight.shape[1], weight.shape[0])
    module.load_state_dict({"weight": weight.clone(), "bias": bias.clone()}, assign=True)
    return module


def main() -> None:
    """Train maps of queries and of a gallery into one space, by lambda-orthogonality."""
    map_program(LambdaOrthogonality(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
