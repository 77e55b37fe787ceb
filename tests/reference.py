"""An independent oracle: one dense masked transformer, written from the method in plain loops.

It reads a model's weights by name and imports nothing of the package: not its masks, attention, blocks or heads. All
sequences are `(*batch, T, .)`, outcomes always with their feature dimension, everything in the dtype of the weights.

A model with latents has inputs with one more column, their location. Where a model standardises, its
constants stand beside the weights: "x_loc" and "x_scale" `(D_x,)`, "y_loc" and "y_scale" `(P + 1, D_y)` by location.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]


class Mixture(NamedTuple):
    """Parameters of the predictive of every target, each `(*batch, M, D_y, C)`."""

    weights: Tensor
    means: Tensor
    sds: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)` nats of outcomes `(*batch, M, D_y)`."""
        density = torch.exp(-0.5 * ((y[..., None] - self.means) / self.sds) ** 2) / (self.sds * math.sqrt(2 * math.pi))
        return (self.weights * density).sum(-1).log()

    def cdf(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)` probabilities of a smaller outcome."""
        return (self.weights * 0.5 * (1 + torch.erf((y[..., None] - self.means) / self.sds / math.sqrt(2)))).sum(-1)

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """`(*batch, M, D_y)`: the first component whose cumulative weight exceeds `uniform`, then a point in it."""
        y = torch.empty_like(normal)
        for index in torch.cartesian_prod(*(torch.arange(n) for n in normal.shape)).view(-1, normal.dim()).tolist():
            here, total, component = tuple(index), 0.0, 0
            for c, weight in enumerate(self.weights[here].tolist()):
                component = c
                total += weight
                if total > uniform[here]:
                    break
            y[here] = self.means[here][component] + self.sds[here][component] * normal[here]
        return y


class _Dimensions:
    """The predictive of outcome dimensions one after the other; "kinds" stand beside the weights.

    "real", "count" or "categorical(n)" for each dimension; `log_prob`, `cdf` and `draw` as those of `Mixture`.
    """

    def __init__(self, w: Weights, features: Tensor):
        self.w, self.features, self.kinds = w, features, w["kinds"]
        dim_y = len(self.kinds)
        self.loc = w["y_loc"][0] if "y_loc" in w else torch.zeros(dim_y, dtype=features.dtype)
        self.scale = w["y_scale"][0] if "y_scale" in w else torch.ones(dim_y, dtype=features.dtype)

    def _raw(self, d: int, y: Tensor) -> Tensor:
        """Numbers of the head for dimension d, given the dimensions of y before it."""
        w, h, width = self.w, self.features, self.features.shape[-1]
        for e in range(d):
            kind, value = self.kinds[e], y[..., e]
            if kind.startswith("categorical"):
                phi = torch.eye(int(kind[12:-1]), dtype=h.dtype)[value.long()]
            else:
                z = ((value + 1).log() if kind == "count" else value) - self.loc[e]
                z = (z / self.scale[e])[..., None]
                phase = torch.asinh(z) * w["head.frequencies"][e]
                phi = torch.cat([z, torch.asinh(z), torch.sin(phase), torch.cos(phase)], -1)
            start = (d - e - 1) * width
            h = h + phi @ w[f"head.links.{e}.weight"][start : start + width].T
        hidden = _gelu(_linear(w, "head.hidden", _layer_norm(h, w["head.norm.weight"])))
        if len(self.kinds) > 1:
            hidden = hidden + _gelu(_linear(w, "head.second", hidden))
        return _linear(w, f"head.out.{d}", hidden)

    def _mixture(self, d: int, raw: Tensor) -> Mixture:
        logits, means, scales = raw.chunk(3, -1)
        sds = (torch.log1p(torch.exp(scales)) + 1e-3) * self.scale[d]
        return Mixture(_softmax(logits), means * self.scale[d] + self.loc[d], sds)

    def cdf_of(self, d: int, y: Tensor, value: Tensor) -> Tensor:
        """Probability of at most `value` in dimension d."""
        raw = self._raw(d, y)
        if self.kinds[d].startswith("categorical"):
            probs = _softmax(raw)
            return (probs * (torch.arange(probs.shape[-1]) <= value[..., None])).sum(-1)
        if self.kinds[d] == "count":
            below = self._mixture(d, raw).cdf((value.clamp(min=0) + 1.5).log())
            return torch.where(value < 0, 0.0, below)
        return self._mixture(d, raw).cdf(value)

    def cdf(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)`."""
        return torch.stack([self.cdf_of(d, y, y[..., d]) for d in range(len(self.kinds))], -1)

    def log_prob(self, y: Tensor) -> Tensor:
        """`(*batch, M, D_y)` nats."""
        parts = []
        for d, kind in enumerate(self.kinds):
            if kind == "real":
                parts.append(self._mixture(d, self._raw(d, y)).log_prob(y[..., d]))
            else:
                parts.append((self.cdf_of(d, y, y[..., d]) - self.cdf_of(d, y, y[..., d] - 1)).log())
        return torch.stack(parts, -1)

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """`(*batch, M, D_y)`, each dimension by the noise of its own."""
        y = torch.zeros_like(normal)
        for d, kind in enumerate(self.kinds):
            raw = self._raw(d, y)
            if kind.startswith("categorical"):
                drawn = (_softmax(raw).cumsum(-1) <= uniform[..., d, None]).sum(-1).to(raw.dtype)
            else:
                mixture = Mixture(*(part[..., None, :] for part in self._mixture(d, raw)))
                drawn = mixture.draw(uniform[..., d, None], normal[..., d, None])[..., 0]
                if kind == "count":
                    drawn = (drawn.exp() - 1).round().clamp(min=0)
            y[..., d] = drawn
        return y


def dense_mask(num_context: int, num_buffer: int, prefix_len: Sequence[int]) -> Tensor:
    """`(T, T)` bool over [context; buffer; targets], `True` = row may read column, from the four rules one by one."""
    tokens = [("context", n) for n in range(num_context)]
    tokens += [("buffer", j) for j in range(num_buffer)]
    tokens += [("target", m) for m in range(len(prefix_len))]

    def may_read(reader: tuple[str, int], read: tuple[str, int]) -> bool:
        if read[0] == "target":
            return False  # R4: nothing reads a target
        if read[0] == "context":
            return True  # R1, R2, R4: everything reads the whole context
        if reader[0] == "context":
            return False  # R3: the context reads neither buffer nor targets
        if reader[0] == "buffer":
            return read[1] <= reader[1]  # R2, with the deviation that a slot reads itself
        return read[1] < prefix_len[reader[1]]  # R4: the visible prefix

    return torch.tensor([[may_read(reader, read) for read in tokens] for reader in tokens])


def predictive(
    weights: Weights,
    num_heads: int,
    x_context: Tensor,
    y_context: Tensor,
    x_buffer: Tensor,
    y_buffer: Tensor,
    x_target: Tensor,
    prefix_len: Sequence[int],
) -> Mixture:
    """The predictive of every target, from one pass of [context; buffer; targets] through the dense transformer."""
    w = weights
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in (x_context, y_context, x_buffer, y_buffer, x_target)))
    num_buffer, num_targets = x_buffer.shape[-2], x_target.shape[-2]
    context = _embed_x(w, x_context) + _embed_y(w, x_context, y_context) + w["embedder.role"][0]
    if "embedder.latent" in w:
        count = (_locations(w, x_context) == 0).sum(-1)[..., None, None].to(context.dtype) + 1
        context = context + _linear(w, "embedder.count_skip", torch.cat([count.log() - 3, count**-0.5], -1))
    if context.shape[-2] == 0:
        context = w["embedder.empty_context"][None]
    buffer = _embed_x(w, x_buffer) + _embed_y(w, x_buffer, y_buffer) + w["embedder.role"][1]
    buffer = buffer + w["embedder.positions.slot"][:num_buffer]
    target = _embed_x(w, x_target) + w["embedder.role"][2]
    tokens = torch.cat([t.expand(*lead, *t.shape[-2:]) for t in (context, buffer, target)], -2)
    mask = dense_mask(context.shape[-2], num_buffer, prefix_len)
    layer = 0
    while f"backbone.blocks.{layer}.query.weight" in w:
        tokens = _block(w, f"backbone.blocks.{layer}.", num_heads, tokens, mask)
        layer += 1
    features = tokens[..., tokens.shape[-2] - num_targets :, :]
    if "kinds" in w:
        return _Dimensions(w, features)
    mixture = _head(w, "head", features, y_context.shape[-1])
    location = _locations(w, x_target).expand(features.shape[:-1])
    if "embedder.latent" in w:
        mixture = _at_latents(mixture, _head(w, "latent_head", features, 1), location > 0)
    if "y_loc" not in w:
        return mixture
    loc, scale = w["y_loc"][location][..., None], w["y_scale"][location][..., None]
    return Mixture(mixture.weights, mixture.means * scale + loc, mixture.sds * scale)


def _head(w: Weights, name: str, features: Tensor, dim_y: int) -> Mixture:
    features = _layer_norm(features, w[f"{name}.norm.weight"])
    raw = _linear(w, f"{name}.out", _gelu(_linear(w, f"{name}.hidden", features)))
    raw = raw.reshape(*raw.shape[:-1], 3, dim_y, raw.shape[-1] // (3 * dim_y))
    logits, means, scales = raw[..., 0, :, :], raw[..., 1, :, :], raw[..., 2, :, :]
    return Mixture(_softmax(logits), means, torch.log1p(torch.exp(scales)) + 1e-3)


def _at_latents(observed: Mixture, latent: Mixture, at_latent: Tensor) -> Mixture:
    """The outcome's mixture, but at latents the latent's in dimension 0, and log density 0 at 0 in all others."""
    shape = (*observed.means.shape[:-1], latent.means.shape[-1])
    weights, means = torch.zeros(shape, dtype=latent.means.dtype), torch.zeros(shape, dtype=latent.means.dtype)
    sds = torch.full(shape, 1 / math.sqrt(2 * math.pi), dtype=latent.means.dtype)
    num_components = observed.means.shape[-1]  # 1 for a Gaussian head: the others have weight 0
    for mine, theirs, others in zip((weights, means, sds), observed, latent, strict=True):
        if mine is weights:
            mine[at_latent] = 1 / shape[-1]
        mine[~at_latent, :, :num_components] = theirs[~at_latent]
        mine[at_latent, 0] = others[at_latent, 0]
    return Mixture(weights, means, sds)


def chain(
    weights: Weights,
    num_heads: int,
    x_context: Tensor,
    y_context: Tensor,
    x: Tensor,
    y: Tensor,
    order: Sequence[int],
    buffer_size: int,
) -> Iterator[tuple[int, Mixture]]:
    """Targets in the given order, each with its predictive given the outcomes `y` of those before it.

    After every `buffer_size` targets their pairs join the context. `y` may be filled in while the chain runs.
    """
    for start in range(0, len(order), buffer_size):
        absorbed, block = list(order[:start]), list(order[start : start + buffer_size])
        x_longer, y_longer = _join(x_context, x[..., absorbed, :]), _join(y_context, y[..., absorbed, :])
        for k, target in enumerate(block):
            before = block[:k]
            x_buffer, y_buffer = x[..., before, :], y[..., before, :]
            yield (
                target,
                predictive(weights, num_heads, x_longer, y_longer, x_buffer, y_buffer, x[..., [target], :], [k]),
            )


def log_prob_factors(
    weights: Weights,
    num_heads: int,
    x_context: Tensor,
    y_context: Tensor,
    x: Tensor,
    y: Tensor,
    order: Sequence[int],
    buffer_size: int,
) -> Tensor:
    """`(*batch, M, D_y)` nats of every target given those before it, in the user's indexing."""
    factors = torch.empty_like(y)
    for target, mixture in chain(weights, num_heads, x_context, y_context, x, y, order, buffer_size):
        factors[..., [target], :] = mixture.log_prob(y[..., [target], :])
    return factors


def log_prob(
    weights: Weights,
    num_heads: int,
    x_context: Tensor,
    y_context: Tensor,
    x: Tensor,
    y: Tensor,
    orders: Sequence[Sequence[int]],
    buffer_size: int,
) -> Tensor:
    """`(*batch,)` nats of the equal mixture over orders."""
    densities = [
        log_prob_factors(weights, num_heads, x_context, y_context, x, y, order, buffer_size).sum((-1, -2)).exp()
        for order in orders
    ]
    return (sum(densities) / len(densities)).log()


def re_encoded_log_prob_factors(
    weights: Weights, num_heads: int, x_context: Tensor, y_context: Tensor, x: Tensor, y: Tensor, order: Sequence[int]
) -> Tensor:
    """Exact autoregression, `(*batch, M, D_y)`: no buffer at all, every pair joins the context at once."""
    factors = torch.empty_like(y)
    for target in order:
        nothing = x[..., :0, :], y[..., :0, :]
        mixture = predictive(weights, num_heads, x_context, y_context, *nothing, x[..., [target], :], [0])
        factors[..., target, :] = mixture.log_prob(y[..., [target], :])[..., 0, :]
        x_context, y_context = _join(x_context, x[..., [target], :]), _join(y_context, y[..., [target], :])
    return factors


def sample(
    weights: Weights,
    num_heads: int,
    x_context: Tensor,
    y_context: Tensor,
    x: Tensor,
    order: Sequence[int],
    buffer_size: int,
    uniform: Tensor,
    normal: Tensor,
) -> Tensor:
    """The draw `(*batch, M, D_y)`, in the user's indexing, that noise `(*batch, M, D_y)` in chain order stands for."""
    y = torch.full_like(normal, torch.nan)
    for k, (target, mixture) in enumerate(chain(weights, num_heads, x_context, y_context, x, y, order, buffer_size)):
        y[..., [target], :] = mixture.draw(uniform[..., [k], :], normal[..., [k], :])
    return y


def _join(context: Tensor, pairs: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(context.shape[:-2], pairs.shape[:-2])
    return torch.cat([t.expand(*lead, *t.shape[-2:]) for t in (context, pairs)], -2)


def _linear(w: Weights, name: str, t: Tensor) -> Tensor:
    t = t @ w[f"{name}.weight"].T
    return t + w[f"{name}.bias"] if f"{name}.bias" in w else t


def _gelu(t: Tensor) -> Tensor:
    return t * 0.5 * (1 + torch.erf(t / math.sqrt(2)))


def _layer_norm(t: Tensor, scale: Tensor) -> Tensor:
    centred = t - t.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * scale


def _softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return exponentials / exponentials.sum(-1, keepdim=True)


def _locations(w: Weights, x: Tensor) -> Tensor:
    return x[..., -1].long() if "embedder.latent" in w else torch.zeros(x.shape[:-1], dtype=torch.int64)


def _embed_x(w: Weights, x: Tensor) -> Tensor:
    location = _locations(w, x)
    if "embedder.latent" in w:
        x = x[..., :-1]
    if "x_loc" in w:
        x = (x - w["x_loc"]) / w["x_scale"]
    embedded = _embed_observed_x(w, x).clone()
    for p in range(1, int(location.max()) + 1 if location.numel() else 0):
        embedded[location == p] = w["embedder.latent"][p - 1]
    return embedded


def _embed_observed_x(w: Weights, x: Tensor) -> Tensor:
    phase = x @ w["embedder.frequencies"].T
    features = torch.cat([x, torch.sin(phase), torch.cos(phase)], -1)
    hidden = _gelu(_linear(w, "embedder.x_in", features))
    return _linear(w, "embedder.x_out", hidden) + _linear(w, "embedder.x_skip", features)


def _embed_y(w: Weights, x: Tensor, y: Tensor) -> Tensor:
    location = _locations(w, x).expand(y.shape[:-1])
    numbers, categories = y, []
    for d, kind in enumerate(w.get("kinds", ())):
        if kind == "count":
            numbers = torch.cat(
                [numbers[..., :d], (y[..., d : d + 1].clamp(min=0) + 1).log(), numbers[..., d + 1 :]], -1
            )
        elif kind != "real":
            numbers = torch.cat([numbers[..., :d], torch.zeros_like(y[..., :1]), numbers[..., d + 1 :]], -1)
            categories.append(torch.eye(int(kind[12:-1]), dtype=y.dtype)[y[..., d].long()])
    if "y_loc" in w:
        y = (y - w["y_loc"][location]) / w["y_scale"][location]
        numbers = (numbers - w["y_loc"][location]) / w["y_scale"][location]
    embedded = _embed_outcome(w, "embedder.y", torch.cat([_outcome_features(w, numbers), *categories], -1))
    if "embedder.latent" in w:
        num_latents = len(w["embedder.latent"])
        for p in range(1, num_latents + 1):
            features = torch.zeros(*y.shape[:-1], 2 * num_latents, dtype=y.dtype)
            features[..., p - 1], features[..., num_latents + p - 1] = y[..., 0], 1.0
            own = _embed_outcome(w, "embedder.latent", features)
            embedded = torch.where((location == p)[..., None], own, embedded)
    return embedded


def _outcome_features(w: Weights, y: Tensor) -> Tensor:
    if "embedder.y_frequencies" not in w:
        return y
    squashed = torch.asinh(y)
    phase = squashed @ w["embedder.y_frequencies"].T
    return torch.cat([y, squashed, torch.sin(phase), torch.cos(phase)], -1)


def _embed_outcome(w: Weights, name: str, features: Tensor) -> Tensor:
    hidden = _gelu(_linear(w, f"{name}_in", features))
    return _linear(w, f"{name}_out", hidden) + _linear(w, f"{name}_skip", features)


def _block(w: Weights, name: str, num_heads: int, tokens: Tensor, mask: Tensor) -> Tensor:
    normed = _layer_norm(tokens, w[f"{name}norm_attention.weight"])
    q, k, v = (_linear(w, name + part, normed) for part in ("query", "key", "value"))
    head_width = q.shape[-1] // num_heads
    read = []
    for head in range(num_heads):
        own = slice(head * head_width, (head + 1) * head_width)
        scores = q[..., own] @ k[..., own].transpose(-1, -2) / math.sqrt(head_width)
        read.append(_softmax(torch.where(mask, scores, -math.inf)) @ v[..., own])
    tokens = tokens + _linear(w, f"{name}out", torch.cat(read, -1))
    hidden = _gelu(_linear(w, f"{name}up", _layer_norm(tokens, w[f"{name}norm_mlp.weight"])))
    return tokens + _linear(w, f"{name}down", hidden)
