"""Network, assembled from embedder, backbone and heads: contexts to keys, targets to predictives, batches to densities.

Pure torch. Knows nothing of a user's arguments, of Contexts, of orders or of Pyro.
"""

from inspect import getattr_static
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_arbuf.network.backbone import Backbone
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.cache import Buffer, BufferCache, ContextCache
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.heads import GaussianMixtureHead, Head, make_head
from pyro_arbuf.network.latents import FINEST
from pyro_arbuf.network.parts import ArchitectureName
from pyro_arbuf.network.positions import relative_positions
from pyro_arbuf.network.predictives import LatentsAmongOutcomes, Predictive
from pyro_arbuf.network.traces import extended
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.network.visibility import buffer_prefix_len


class Network(nn.Module):
    """A set model with a causal autoregressive buffer, as training and inference see it.

    It is assembled from parts, each of which may be given in place of the one that the configuration describes.

    Args:
        config: Sizes, head and trained ranges.
        embedder: Tokens from pairs and inputs, with the methods of `Embedder`.
        backbone: Blocks, with the methods of `Backbone`.
        head: Features `(*batch, M, d)` to a `Predictive` of batch shape `(*batch, M, D_y)`, in standardised units.

    Raises:
        ValueError: If a location is so large that its scale is lost beside it, the configuration is of another
            architecture, or a backbone has another number of blocks than it.

    Source:
        Hassan et al. (2026), section 3.
    """

    architecture: ClassVar[ArchitectureName] = "buffer"

    def __init__(
        self,
        config: ModelConfig,
        embedder: Embedder | None = None,
        backbone: Backbone | None = None,
        head: Head | None = None,
    ):
        super().__init__()
        if config.architecture != self.architecture:
            raise ValueError(
                f"config.architecture must be {self.architecture!r} for {type(self).__name__}; got "
                f"{config.architecture!r}; use pyro_arbuf.baselines.make_model(config)"
            )
        check_resolution(config, torch.get_default_dtype())
        self.__dict__["config"] = config  # past the property, which cannot be set
        sizes = (config.width, config.head_width)
        self.embedder = Embedder(config) if embedder is None else embedder
        frequencies = None if config.lag_column is None else self.embedder.turn_frequencies
        layers = (config.num_layers, config.num_heads, config.mlp_width, config.scaled_queries, frequencies)
        relative = relative_positions(config.slot_positions, config.width, config.num_heads)
        if backbone is not None:
            check_backbone(backbone, config)
        self.backbone = Backbone(config.width, *layers, relative) if backbone is None else backbone
        self.head: Head = make_head(config) if head is None else head
        # A share of the number just before, exact where it is large: layer norms keep the direction of a token only.
        self.follow = None
        if config.num_traces and config.all_real:
            share = nn.Linear(config.width, config.dim_y or 1)
            nn.init.zeros_(share.weight)
            self.follow = nn.Sequential(nn.LayerNorm(config.width, bias=False), share)
        if config.latents:
            self.latent_head = GaussianMixtureHead(*sizes, 1, config.num_components)

    @property
    def config(self) -> ModelConfig:
        """Sizes, head, standardisation and trained ranges: read-only, the weights and buffers were made for them."""
        return self.__dict__["config"]

    @config.setter
    def config(self, config: ModelConfig) -> None:
        raise AttributeError(
            "net.config is read-only, as the network's layers were made from it. Build a network of the new "
            "configuration and give it these weights: other = ArBufferModel(config); "
            "other.load_state_dict(net.state_dict())"
        )

    @property
    def buffer_size(self) -> int:
        """Most targets between two absorptions: the slots of the buffer, K."""
        return self.config.buffer_size

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latents, in the order of their locations; empty for a model without."""
        return tuple(latent.name for latent in self.config.latents)

    def encode(self, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> ContextCache:
        """Encodes contexts; where one has no pair, the empty-context token stands in.

        Args:
            x: `(B, N, D_x)`, zeros where padded; of tables `(B, N, D)`, 1 <= D <= D_x, NaN where a cell is missing.
            y: `(B, N, D_y)`, zeros where padded.
            context_len: `(B,)` int64, real pairs per task, the padding behind them; `None` = all N.

        Returns:
            Keys and values of every layer, of max(N, 1) tokens, and what targets are embedded by.
        """
        empty, summary = self.embedder.empty_context, self.embedder.summary(x, y, context_len)
        if x.shape[1] == 0:
            return self.backbone.encode_context(empty.expand(x.shape[0], 1, -1))._replace(summary=summary)
        embedded_x = self.embedder.inputs(x, summary)
        trail = self.embedder.trail(embedded_x, y, context_len)
        tokens, timed = self.embedder.context(embedded_x, y, self.embedder.told(embedded_x, trail)), None
        if self.config.latents:
            tokens = tokens + self.embedder.count(embedded_x, context_len)
        if context_len is not None:
            first = torch.arange(x.shape[1], device=x.device) == 0
            tokens = torch.where(((context_len == 0)[:, None] & first)[..., None], empty, tokens)
            timed, context_len = (context_len > 0)[:, None], context_len.clamp(min=1)
        turn = self.embedder.turn(embedded_x, timed)
        return self.backbone.encode_context(tokens, context_len, turn)._replace(summary=summary, trail=trail)

    def embed_targets(self, cache: ContextCache, x: Tensor) -> Tensor:
        """E_x of targets given their encoded context, of which it uses the `summary`, if there is one.

        Rows of tables are embedded by a summary of the columns of their context. A network whose embedding uses
        something else makes `encode` return a cache with a `summary` of its own and overrides this. The chain embeds
        targets anew after every absorption where there is a summary.

        Args:
            cache: The encoded context.
            x: `(B, S or 1, M, D_x)` target inputs.

        Returns:
            `(B, S or 1, M, d)`, what `predict` takes.
        """
        return self.embedder.inputs(x, cache.summary)

    def predict(
        self,
        cache: ContextCache,
        buffer: Buffer,
        pairs: tuple[Tensor, Tensor] | None,
        embedded_target: Tensor,
        prefix_len: Tensor | None = None,
    ) -> tuple[Predictive, Buffer]:
        """Appends pairs to the buffer and predicts targets from the context and a prefix of the buffer.

        Args:
            cache: The encoded context.
            buffer: The buffer so far.
            pairs: Embedded inputs `(B, S or 1, T, d)` and outcomes `(B, S, T, D_y)` that enter; `None` = none.
            embedded_target: What `embed_targets` returns for the targets, `(B, S or 1, M, d)`.
            prefix_len: int64 `(M,)`, `(B, M)` or `(B, S, M)`; `None` = the whole buffer.

        Returns:
            The predictive, batch shape `(B, S, M, D_y)`, and the longer buffer.
        """
        entering, before, trail = None, cache.trail and cache.trail.of_draws(), buffer.trail
        if pairs is not None:
            trail = extended(trail, self.embedder.trail(*pairs))
            own = buffer_prefix_len(buffer.num_slots, pairs[0].shape[-2], embedded_target.device)
            told = self.embedder.told(pairs[0], before, trail, own)
            entering = self.embedder.buffer(*pairs, buffer.num_slots, told)
        told = self.embedder.told(embedded_target, before, trail, prefix_len)
        target_tokens = self.embedder.target(embedded_target, told)
        turns = (None if pairs is None else self.embedder.turn(pairs[0]), self.embedder.turn(embedded_target))
        features, buffer = self.backbone.read(cache, buffer, entering, target_tokens, prefix_len, *turns)
        predictive = self._predictive(features, embedded_target, told)
        return predictive, buffer if trail is None else buffer._replace(trail=trail)

    def _predictive(self, features: Tensor, embedded_target: Tensor, told: Tensor | None) -> Predictive:
        """The predictive in the user's units; unconstrained ones at a latent, whose one number is dimension 0."""
        outcome = self.head(features)
        if self.follow is not None and told is not None and self.embedder.traces is not None:
            before = self.embedder.traces.just_before(told)
            outcome = outcome.affine(self.follow(features) * before, torch.ones_like(before))
        if not self.embedder.standardised_y:
            return outcome
        loc, scale = self.embedder.standard(embedded_target)
        outcome = outcome.affine(loc, scale)
        if not self.config.latents:
            return outcome
        at_latent = (self.embedder.location(embedded_target) > 0).unsqueeze(-1)
        # Where a value may decide without waiting for a device; asking a head for nothing can cost more than the rest.
        may_decide = at_latent.device.type == "cpu" and not is_traced()
        if may_decide and not self.latent_head.out.weight.requires_grad and not bool(at_latent.any()):
            return outcome  # in training, optimisers tell a gradient of 0 from none
        latent = self.latent_head(features).affine(loc[..., :1], scale[..., :1])
        return LatentsAmongOutcomes(at_latent, latent, outcome, may_decide and bool(at_latent.all()))

    def score(self, batch: Batch) -> Tensor:
        """Teacher-forced log densities, by the same functions as everything else.

        Args:
            batch: Contexts, buffers and targets with their prefix lengths.

        Returns:
            `(B, M)` nats per target.
        """
        cache = self.encode(batch.x_context, batch.y_context)
        pairs = None
        if batch.x_buffer.shape[1]:
            pairs = (self.embed_targets(cache, batch.x_buffer[:, None]), batch.y_buffer[:, None])
        embedded_target = self.embed_targets(cache, batch.x_target[:, None])
        predictive, _ = self.predict(cache, BufferCache(), pairs, embedded_target, batch.prefix_len)
        return predictive.log_prob(batch.y_target[:, None]).sum(-1).squeeze(1)  # (B, M)

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log density of the targets: what training minimises.

        Returns:
            A scalar, nats per target.
        """
        return -self.score(batch).mean()

    def forward(self, batch: Batch) -> Tensor:
        """The loss, under the name that wrappers for mixed precision and for several processes call."""
        return self.loss(batch)


def check_backbone(backbone: Backbone, config: ModelConfig) -> None:
    """Raises ValueError if a backbone has another number of blocks than the configuration."""
    blocks = getattr(backbone, "blocks", None)  # one with the methods alone need not have any
    if blocks is not None and len(blocks) != config.num_layers:
        raise ValueError(
            f"backbone must have config.num_layers = {config.num_layers} blocks; got {len(blocks)}; give the "
            "configuration that number"
        )


def own_parts(net: Network, like: Network) -> dict[str, str]:
    """Which modules of a network may compute something else than those that its configuration describes.

    Those are of a class that is no subclass of theirs, or overrides a method, or of another number of heads.

    Args:
        net: The network.
        like: The one that its configuration describes; it may be on the meta device.

    Returns:
        Class by name of the module, "" for the network itself; of nested ones the outermost.
    """
    expected, found = dict(like.named_modules()), {}
    for name, module in net.named_modules():
        parents = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)}
        if not parents & found.keys() and not (name in expected and _computes_as(module, expected[name])):
            found[name] = type(module).__name__
    return found


def _computes_as(module: nn.Module, other: nn.Module) -> bool:
    """Whether a module is of the class of another or adds to it, overriding nothing but how it is made."""
    kind, known = type(module), type(other)
    methods = {name for name in dir(known) if not name.startswith("__")}
    same = all(getattr_static(kind, name, None) is getattr_static(known, name) for name in methods)
    return issubclass(kind, known) and same and getattr(module, "num_heads", 0) == getattr(other, "num_heads", 0)


def check_resolution(config: ModelConfig, dtype: torch.dtype) -> None:
    """Checks that a network's numbers can hold what it was made for, beside its location.

    Raises:
        ValueError: If a scale is below 1e-5 of its location (in float32): data would lose their second digit.
    """
    least = FINEST * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    pairs = {"x": (config.x_loc, config.x_scale), "y": (config.y_loc, config.y_scale)}
    pairs |= {f"latent {latent.name!r}": (latent.loc, latent.scale) for latent in config.latents}
    for name, (locs, scales) in pairs.items():
        for loc, scale in zip(locs or (), scales or (), strict=True) if locs and scales else ():
            if scale < least * abs(loc):
                raise ValueError(
                    f"the scale of {name} must be at least {least:.1g} of its location, or {dtype} cannot tell values "
                    f"apart; got location {loc:.10g} and scale {scale:.4g}; subtract the location from the data, in "
                    "float64, and make the network for what is left: densities are unchanged"
                )
