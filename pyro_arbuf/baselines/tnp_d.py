"""TNP-D: a set model that is trained without a buffer (Nguyen and Grover 2022).

`ArBufferMarginals` are its independent predictions (TNP-D-Ind), `ArBufferJoint` re-encodes after every target
(TNP-D-AR).
"""

from torch import Tensor

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch


class TNPD(ArBufferModel):
    """A set model: every target reads the context, and nothing else.

    It differs from the published one in what all networks here share: the embedder, the blocks, a mixture of Gaussians
    in place of one Gaussian, and an empty context that is trained. Its weights have the names and shapes of a network
    with a buffer, of which those of the buffer's role and positions are never used.

    Source:
        Nguyen and Grover (2022), "Transformer neural processes", the diagonal variant; TNP-D-AR: Bruinsma et al.
        (2023), "Autoregressive conditional neural processes".
    """

    architecture = "tnp-d"

    @property
    def buffer_size(self) -> int:
        """One target between two absorptions: the buffer stays empty."""
        return 1

    def score(self, batch: Batch) -> Tensor:
        """Log densities `(B, M)`, nats, of all targets given the context; the buffer is not looked at."""
        empty = {"x_buffer": batch.x_buffer[:, :0], "y_buffer": batch.y_buffer[:, :0]}
        return super().score(batch._replace(**empty, prefix_len=batch.prefix_len * 0))
