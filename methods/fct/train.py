"""FCT: Forward Compatible Training for Large-Scale Embedding Retrieval Systems (Ramanujan et al., CVPR 2022).

arXiv 2112.02805. The new model is trained without a thought of the old one. A small network h then carries the stored
old embedding o_i of an image, and side information s_i that was stored with it, into the new model's space:

    L = mean_i |n_i - h(o_i, s_i)|²

n_i, o_i and s_i have length 1; without side information s_i = o_i. The network (core/models/maps/forward.py) is

    h = linear(block(block([branch(o); branch(s)]))),    branch: two blocks, D -> 2 D -> 2 D_n,

a block being a linear layer without bias, batch normalisation and ReLU, 2048 wide behind the branches. After half of
the epochs batch statistics are frozen. The map is that of a gallery: queries are embedded by the new model alone.

    python train.py configs/OPclass_ms1mv3_r18_to_r50_FCT_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old new_model=work_dirs/glyphs_independent
"""

from torch import Tensor

from core.engine.forward_map import ForwardMap
from core.engine.map_training import PairBatch
from core.errors import run_program
from core.program import map_program
from core.settings import ForwardMapSettings


class FCT(ForwardMap[ForwardMapSettings]):
    """Holds the network h."""

    kind = "fct"

    def loss(self, batch: PairBatch) -> dict[str, Tensor]:
        """`distance`: the squared one between new and mapped old embedding."""
        mapped = self.network(batch.old)
        return {"distance": (batch.new - mapped).square().sum(dim=1).mean()}


def main() -> None:
    """Train a map that carries a stored gallery into the new model's space, by FCT."""
    map_program(FCT(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
