"""TNP-ND: one multivariate Gaussian over all targets, whose covariance depends on all of them (Nguyen and Grover 2022).

Its predictive is `GaussianJoint`. Knows nothing of Contexts or Pyro.
"""

from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_arbuf.baselines.attention_layer import AttentionLayer
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.cache import BufferCache, ContextCache
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.outcomes import MIN_SD
from pyro_arbuf.network.visibility import chain_prefix_len, prefix_mask

RANK, TARGET_LAYERS = 20, 3


def make_mlp(width: int, hidden_width: int, size: int) -> nn.Sequential:
    """A layer norm and an MLP of one hidden layer."""
    layers = nn.Linear(width, hidden_width), nn.GELU(), nn.Linear(hidden_width, size)
    return nn.Sequential(nn.LayerNorm(width, bias=False), *layers)


class JointGaussianHead(nn.Module):
    """Features of M targets to the mean and the triangular factor of one Gaussian over all their outcomes.

    The factor is the lower triangle of H H', with H of M D_y rows and 20 columns, and a positive diagonal besides.

    Args:
        width: Feature width d.
        hidden_width: Hidden width of the mean's MLP; that of the factor is twice as wide.
        dim_y: Outcome dimensions D_y.
    """

    def __init__(self, width: int, hidden_width: int, dim_y: int):
        super().__init__()
        self.dim_y = dim_y
        self.mean = make_mlp(width, hidden_width, dim_y)
        self.factor = make_mlp(width, 2 * hidden_width, dim_y * (RANK + 1))

    def forward(self, features: Tensor, mixed: Tensor) -> MultivariateNormal:
        """The Gaussian, batch `(*batch,)`, event M D_y, of features `(*batch, M, d)` before and after targets mix."""
        with torch.autocast(features.device.type, enabled=False):
            features, mixed = (part.to(next(self.parameters()).dtype) for part in (features, mixed))
            mean = self.mean(features).flatten(-2)
            raw = self.factor(mixed).unflatten(-1, (self.dim_y, -1)).flatten(-3, -2)
            rows, diagonal = raw[..., :-1], F.softplus(raw[..., -1]) + MIN_SD  # (*batch, M D_y, 20), (*batch, M D_y)
            product = rows @ rows.mT
            before = prefix_mask(chain_prefix_len(mean.shape[-1], mean.device), mean.shape[-1])
            diagonal = diagonal + product.diagonal(dim1=-2, dim2=-1)
            factor = product.masked_fill(~before, 0.0) + torch.diag_embed(diagonal)
            return MultivariateNormal(mean, scale_tril=factor, validate_args=False)


class TNPND(ArBufferModel):
    """A set model whose targets have one joint Gaussian: its mean from each target alone, its covariance from all.

    The features of the targets read each other in 3 layers of attention, and every outcome has a row of 20 numbers; the
    covariance is L L' with L the lower triangle of the rows' products. It depends on the order of the targets, and on
    which others are asked for, like the published one. It is trained on the pairs of the buffer, all of them targets.

    It differs from the published one in what all networks here share (embedder, blocks), in layers over targets without
    MLPs, and in a learned positive diagonal that is added to L, without which training starts from large densities.

    Source:
        Nguyen and Grover (2022), "Transformer neural processes", the non-diagonal variant.
    """

    architecture = "tnp-nd"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        del self.head, self.embedder.positions
        self.joint_head = JointGaussianHead(config.width, config.head_width, config.dim_y or 1)
        layers = (AttentionLayer(config.width, config.num_heads, TARGET_LAYERS) for _ in range(TARGET_LAYERS))
        self.backbone.among_targets = nn.ModuleList(layers)

    @property
    def buffer_size(self) -> int:
        """Raises ValueError: there is no buffer."""
        self._refuse()

    def predict(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises ValueError: targets have no predictives of their own."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            "a network of architecture 'tnp-nd' predicts all targets at once, as one Gaussian; use "
            "pyro_arbuf.baselines.GaussianJoint(context, x)"
        )

    def predict_jointly(self, cache: ContextCache, embedded_target: Tensor) -> MultivariateNormal:
        """The Gaussian of all targets.

        Args:
            cache: The encoded context of B tasks.
            embedded_target: What `embed_targets` returns for the targets, `(B, S, M, d)`.

        Returns:
            Batch `(B, S)`, event M D_y, the dimensions of one target side by side.
        """
        tokens, turn = self.embedder.target(embedded_target), self.embedder.turn(embedded_target)
        features, _ = self.backbone.read(cache, BufferCache(), None, tokens, target_turn=turn)
        mixed = features.flatten(0, 1)
        for layer in self.backbone.get_submodule("among_targets").children():
            mixed = layer(mixed, mixed)
        gaussian = self.joint_head(features, mixed.view_as(features))
        if not self.embedder.standardised_y:
            return gaussian
        loc, scale = (part.flatten(-2) for part in self.embedder.standard(embedded_target))
        factor = scale.unsqueeze(-1) * gaussian.scale_tril
        return MultivariateNormal(loc + scale * gaussian.loc, scale_tril=factor, validate_args=False)

    def score(self, batch: Batch) -> Tensor:
        """Log densities `(B, K)`, nats, of the pairs of the buffer: an equal share of their joint density each."""
        cache = self.encode(batch.x_context, batch.y_context)
        gaussian = self.predict_jointly(cache, self.embed_targets(cache, batch.x_buffer[:, None]))
        joint = gaussian.log_prob(batch.y_buffer[:, None].flatten(-2))  # (B, 1)
        num_targets = batch.y_buffer.shape[1]
        return (joint / num_targets).expand(-1, num_targets)
