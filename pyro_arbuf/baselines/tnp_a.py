"""TNP-A: targets that stand twice, as pairs under a causal mask and as queries (Nguyen and Grover 2022)."""

from torch import Tensor

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.positions import NoPositions
from pyro_arbuf.network.visibility import chain_prefix_len


class TNPA(ArBufferModel):
    """A set model that is trained on chains: every target is a pair for those after it, and a query of its own.

    A training step sends 2 M tokens of M targets through the layers, and there is no other target, so that chains as
    long as those of training are what it has learned. `buffer_size` is their length M; more targets than that are
    absorbed.

    It differs from the published one in what all networks here share (embedder, blocks, mixture head), and in drawing:
    there, context and pairs are encoded anew for every target; here, `ArBufferJoint` appends to kept keys and values,
    which gives the same law for much less. `benchmarks/paper.py` times both.

    Source:
        Nguyen and Grover (2022), "Transformer neural processes", the autoregressive variant.
    """

    architecture = "tnp-a"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.embedder.positions = NoPositions()

    def score(self, batch: Batch) -> Tensor:
        """Log densities `(B, K)`, nats, of the pairs of the buffer, each given those before it."""
        chain = {"x_target": batch.x_buffer, "y_target": batch.y_buffer}
        prefix_len = chain_prefix_len(batch.x_buffer.shape[1], batch.x_buffer.device)
        return super().score(batch._replace(**chain, prefix_len=prefix_len))
