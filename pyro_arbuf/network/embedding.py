"""Tokens from pairs and inputs: E_x, E_y, roles, buffer positions, latent locations, empty-context token (section 3).

    context  E_x(x) + E_y(y) + role        buffer slot j  E_x(x) + E_y(y) + role + a(j)        target  E_x(x) + role

with a(j) the position of slot j, see `network/positions`.

E_x is an MLP with a linear skip over x and learned sines and cosines of it; E_y an MLP with a linear skip, of sines and
cosines too where the configuration says so. A latent has a learned vector in place of E_x and an E_y of its own; a row
of a table is embedded by what its context says of the columns, see `network/rows`.
Knows nothing of attention or of distributions.

Deviation: the paper's E_x and E_y are MLPs of three layers, with a skip from the first, of the bare numbers; sines and
cosines resolve what varies fast within the range of x. It does not say what stands in for an empty context, which
evidence starts from, and does not tell the tokens of a context how many they are, see `Embedder.count`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.lags import Turn, turn_frequencies, turn_of
from pyro_arbuf.network.latents import standardisation
from pyro_arbuf.network.outcomes import at_most, one_hot
from pyro_arbuf.network.positions import added_positions
from pyro_arbuf.network.rows import RowEncoder
from pyro_arbuf.network.traces import Traces, Trail
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.network.visibility import context_mask, slot_mask

CONTEXT, BUFFER, TARGET = range(3)
MAX_Y_FREQUENCY = 16.0  # before training, radians per standard deviation of y


class Embedder(nn.Module):
    """Embeds pairs and inputs as tokens of width d.

    An embedded input has d numbers, and its location (0 = an observation) behind them where there are latents.

    Args:
        config: Sizes, frequencies, latents and standardisation.
    """

    x_loc: Tensor
    x_scale: Tensor
    y_loc: Tensor  # (P + 1, D_y)
    y_scale: Tensor
    turn_frequencies: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim_y, width, hidden_width = config.dim_y or 1, config.width, config.embedding_width
        self.width, self.num_latents = width, config.num_latents
        self.rows = RowEncoder(config) if config.inputs == "rows" else None
        if self.rows is None:
            self._make_features(config)
        self.kinds, self.all_real = config.kinds, config.all_real
        y_features, num_categories = dim_y, sum(kind.num_categories for kind in config.kinds)
        self.y_frequencies = None
        if config.num_y_frequencies:
            magnitudes = torch.logspace(0.0, math.log10(MAX_Y_FREQUENCY), config.num_y_frequencies).unsqueeze(-1)
            directions = F.normalize(torch.randn(config.num_y_frequencies, dim_y), dim=-1)
            self.y_frequencies = nn.Parameter(magnitudes * directions)
            y_features = 2 * dim_y + 2 * config.num_y_frequencies
        y_features += num_categories
        y_features += self._make_traces(config, y_features)
        self.y_in = nn.Linear(y_features, hidden_width)
        self.y_out = nn.Linear(hidden_width, width)
        self.y_skip = nn.Linear(y_features, width, bias=False)
        self.role = nn.Parameter(torch.randn(3, width) * 0.5)
        self.positions: nn.Module = added_positions(config.slot_positions, config.buffer_size, width)
        self.empty_context = nn.Parameter(torch.randn(width) * 0.5)
        if self.num_latents:
            self.latent = nn.Parameter(torch.randn(self.num_latents, width) * 0.5)
            self.latent_in = nn.Linear(2 * self.num_latents, hidden_width)
            self.latent_out = nn.Linear(hidden_width, width)
            self.latent_skip = nn.Linear(2 * self.num_latents, width, bias=False)
            self.count_skip = nn.Linear(2, width, bias=False)
        self.lag_column = config.lag_column
        if self.lag_column is not None:
            frequencies = turn_frequencies(config.max_frequency, config.width // config.num_heads)
            self.register_buffer("turn_frequencies", frequencies, persistent=False)
            self.trials_per_time = config.max_frequency / math.pi
        self._make_standardisation(config)

    def _make_traces(self, config: ModelConfig, y_features: int) -> int:
        """The layers of what tokens of a series are told; returns by how many features those of outcomes grow."""
        self.traces = None
        if not config.num_traces:
            return 0
        self.traces = Traces(config.num_traces, y_features, config.dim_y or 1, config.embedding_width)
        self.told_in = nn.Linear(self.traces.size, config.embedding_width)
        self.told_out = nn.Linear(config.embedding_width, config.width)
        self.told_skip = nn.Linear(self.traces.size, config.width, bias=False)
        return self.traces.size + (self.traces.num_numbers if self.all_real else 0)

    def _make_standardisation(self, config: ModelConfig) -> None:
        self.standardised_x = config.x_loc is not None and config.x_scale is not None
        if self.standardised_x:
            self.register_buffer("x_loc", torch.tensor(config.x_loc), persistent=False)
            self.register_buffer("x_scale", torch.tensor(config.x_scale), persistent=False)
        self.standardised_y = bool(config.latents) or (config.y_loc is not None and config.y_scale is not None)
        if self.standardised_y:
            loc, scale = standardisation(config.latents, config.dim_y or 1, config.y_loc, config.y_scale)
            self.register_buffer("y_loc", loc, persistent=False)
            self.register_buffer("y_scale", scale, persistent=False)

    def _make_features(self, config: ModelConfig) -> None:
        """The layers of an E_x of features."""
        dim_x, count, width, hidden_width = config.dim_x, config.num_frequencies, config.width, config.embedding_width
        magnitudes = torch.logspace(math.log10(0.5), math.log10(config.max_frequency), count).unsqueeze(-1)
        self.frequencies = nn.Parameter(magnitudes * _directions(count, dim_x, config.sequential))
        num_features = dim_x + 2 * count
        self.x_in = nn.Linear(num_features, hidden_width)
        self.x_out = nn.Linear(hidden_width, width)
        self.x_skip = nn.Linear(num_features, width, bias=False)

    def summary(self, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> tuple[Tensor, ...] | None:
        """What the inputs of a context and of its targets are embedded by: of tables, their columns; else nothing.

        Args:
            x: `(B, N, D_x)` inputs of the context.
            y: `(B, N, D_y)` outcomes of the context.
            context_len: `(B,)` int64, real pairs per task; `None` = all N.
        """
        if self.rows is None:
            return None
        with torch.autocast(x.device.type, enabled=False):
            return self.rows.summary(x, y, context_len)

    def inputs(self, x: Tensor, summary: Tensor | tuple[Tensor, ...] | None = None) -> Tensor:
        """E_x: `(*batch, T, d)` of inputs `(*batch, T, D_x)`; with latents one column more, on both sides.

        Args:
            x: The inputs; of tables `(B, ..., T, D)`.
            summary: What `summary` returned for the contexts of the B tasks.
        """
        with torch.autocast(x.device.type, enabled=False):  # bf16 phases and outcomes are coarser than the noise
            if self.rows is not None:
                assert isinstance(summary, tuple), "rows are embedded by a summary of their context"
                return self.rows(x, summary)
            location = x[..., -1:] if self.num_latents else None
            observed = x if location is None else x[..., :-1]
            if self.standardised_x:
                observed = (observed - self.x_loc) / self.x_scale
            time = [] if self.lag_column is None else [observed[..., self.lag_column, None]]
            if location is None:
                embedded = self._observed_inputs(observed)
                return torch.cat([embedded, *time], -1) if time else embedded
            embedded = self._either(
                location.squeeze(-1).long(),
                lambda which: F.pad(self.latent, (0, 0, 1, 0))[which],
                lambda: self._observed_inputs(observed),
            )
            return torch.cat([embedded, *time, location], -1)

    def turn(self, embedded_x: Tensor, timed: Tensor | None = None) -> Turn | None:
        """Angles of embedded inputs `(*batch, T, .)` of a series, `None` where attention sees no lags.

        Args:
            embedded_x: Of which latents have no time.
            timed: `(*batch, T)` bool, which others have one; `None` = all of them.
        """
        if self.lag_column is None:
            return None
        observed = self.location(embedded_x) == 0
        observed = observed if timed is None else observed & timed
        return turn_of(embedded_x[..., self.width], observed.to(embedded_x.dtype), self.turn_frequencies)

    def _observed_inputs(self, x: Tensor) -> Tensor:
        phase = x @ self.frequencies.mT  # (*batch, T, F)
        features = torch.cat([x, torch.sin(phase), torch.cos(phase)], -1)
        return self.x_out(F.gelu(self.x_in(features))) + self.x_skip(features)

    def trail(self, embedded_x: Tensor, y: Tensor, context_len: Tensor | None = None) -> Trail | None:
        """What later trials of a series are told of these; `None` where they are told nothing.

        Args:
            embedded_x: `(*batch, T, .)`, of which latents are no trials.
            y: `(*batch, T, D_y)` outcomes.
            context_len: `(B,)` int64, how many are real, the padding behind them; `None` = all T.
        """
        if self.traces is None:
            return None
        known = self.location(embedded_x) == 0
        if context_len is not None:
            known = known & context_mask(context_len, known.shape[-1])
        with torch.autocast(y.device.type, enabled=False):
            return Trail(self._trial(embedded_x), self.traces.values(self._features(y, embedded_x), known))

    def told(
        self,
        embedded_x: Tensor,
        context: Trail | None,
        slots: Trail | None = None,
        prefix_len: Tensor | None = None,
    ) -> Tensor | None:
        """What tokens are told of the trials before them, `(*batch, T, .)`; `None` where they are told nothing.

        Args:
            embedded_x: `(*batch, T, .)` of the tokens.
            context: Trials of the context.
            slots: Those of the buffer.
            prefix_len: Slots that each token reads, as `Backbone.read` takes them; `None` = all.
        """
        if self.traces is None:
            return None
        with torch.autocast(embedded_x.device.type, enabled=False):
            told = embedded_x.new_zeros(*embedded_x.shape[:-1], self.traces.size)
            if context is not None:
                told = told + self.traces(self._trial(embedded_x), context)
            if slots is not None:
                visible = None if prefix_len is None else slot_mask(prefix_len, slots.time.shape[-1])
                told = told + self.traces(self._trial(embedded_x), slots, visible)
            return told

    def _trial(self, embedded_x: Tensor) -> Tensor:
        return self.trials_per_time * embedded_x[..., self.width]

    def outcomes(self, y: Tensor, embedded_x: Tensor, told: Tensor | None = None) -> Tensor:
        """E_y: `(*batch, T, d)` of outcomes `(*batch, T, D_y)` at embedded inputs `(*batch, T, d)`.

        Args:
            y: The outcomes.
            embedded_x: Their embedded inputs.
            told: Of a series, what `told` says of the trials before them.
        """
        with torch.autocast(y.device.type, enabled=False):
            if not self.num_latents:
                return self._observed_outcomes(y, embedded_x, told)
            return self._either(
                self.location(embedded_x),
                lambda which: self._latent_outcomes(y, embedded_x, which),
                lambda: self._observed_outcomes(y, embedded_x, told),
            )

    def _observed_outcomes(self, y: Tensor, embedded_x: Tensor, told: Tensor | None) -> Tensor:
        features = self._features(y, embedded_x)
        if told is not None:
            features = self._with_told(features, told)
        return self.y_out(F.gelu(self.y_in(features))) + self.y_skip(features)

    def _latent_outcomes(self, y: Tensor, embedded_x: Tensor, location: Tensor) -> Tensor:
        loc, scale = self.standard(embedded_x)
        which = (location.unsqueeze(-1) == torch.arange(1, self.num_latents + 1, device=y.device)).to(y.dtype)
        which = which.expand(*y.shape[:-1], -1)
        latent = at_most((y[..., :1] - loc[..., :1]) / scale[..., :1], y[..., :1])
        features = torch.cat([which * latent, which], -1)
        return self.latent_out(F.gelu(self.latent_in(features))) + self.latent_skip(features)

    def _either(self, location: Tensor, latent: Callable[[Tensor], Tensor], observed: Callable[[], Tensor]) -> Tensor:
        """What is made of latents, given their locations `(*batch, T)`, and what of observations: `(*batch, T, d)`.

        Of a frozen network on a CPU, what nothing is made of is not computed. In training it is: optimisers tell a
        gradient of 0 from none.
        """
        at_latent = location > 0
        if not (self.latent.requires_grad or is_traced()) and location.device.type == "cpu":
            if bool(at_latent.all()):
                return latent(location)
            if not bool(at_latent.any()):
                return observed()
        return torch.where(at_latent.unsqueeze(-1), latent(location), observed())

    def _with_told(self, features: Tensor, told: Tensor) -> Tensor:
        """Features of outcomes, what they are told, and real numbers as the change since the trial before."""
        assert self.traces is not None
        batch = torch.broadcast_shapes(features.shape[:-1], told.shape[:-1])
        features, told = features.expand(*batch, -1), told.expand(*batch, -1)
        before = self.traces.just_before(told)
        changes = [torch.asinh(features[..., : before.shape[-1]] - before)] if self.all_real else []
        return torch.cat([features, self.traces.squashed(told), *changes], -1)

    def _features(self, y: Tensor, embedded_x: Tensor) -> Tensor:
        """Features `(*batch, T, .)` of outcomes `(*batch, T, D_y)`: standardised numbers and sines; categories."""
        numbers = y if self.all_real else torch.stack([kind.number(y[..., d]) for d, kind in enumerate(self.kinds)], -1)
        if self.standardised_y:
            loc, scale = self.standard(embedded_x)
            numbers = (numbers - loc) / scale
        numbers = at_most(numbers, y)
        features = [numbers]
        if self.y_frequencies is not None:
            squashed = torch.asinh(numbers)  # outcomes far out keep a moderate phase
            phase = squashed @ self.y_frequencies.mT
            features += [squashed, torch.sin(phase), torch.cos(phase)]
        categories = ((d, kind.num_categories) for d, kind in enumerate(self.kinds) if kind.num_categories)
        features += [one_hot(y[..., d], number) for d, number in categories]
        return torch.cat(features, -1)

    def location(self, embedded_x: Tensor) -> Tensor:
        """Locations `(*batch, T)` int64 of embedded inputs: 0 = an observation, p = the p-th latent number."""
        if not self.num_latents:
            return torch.zeros(embedded_x.shape[:-1], dtype=torch.int64, device=embedded_x.device)
        return embedded_x[..., -1].long()

    def standard(self, embedded_x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of the outcome at embedded inputs, each `(*batch, T, D_y)`."""
        location = self.location(embedded_x)
        return self.y_loc[location], self.y_scale[location]

    def context(self, embedded_x: Tensor, y: Tensor, told: Tensor | None = None) -> Tensor:
        """Context tokens `(*batch, N, d)` of embedded inputs `(*batch, N, d)` and outcomes `(*batch, N, D_y)`."""
        return embedded_x[..., : self.width] + self.outcomes(y, embedded_x, told) + self.role[CONTEXT]

    def count(self, embedded_x: Tensor, context_len: Tensor | None = None) -> Tensor:
        """What tells the tokens of a context how many observations it has, `(B, 1, d)`.

        Softmax averages over exchangeable tokens cannot count them, but a posterior's width depends on their number.

        Args:
            embedded_x: `(B, N, d + 1)` embedded inputs, latents included.
            context_len: `(B,)` int64, real tokens per task; `None` = all N.
        """
        observed = (self.location(embedded_x) == 0).sum(-1)
        if context_len is not None:
            observed = observed - (embedded_x.shape[-2] - context_len)  # padding looks like observations
        number = (1 + observed).to(embedded_x.dtype)
        return self.count_skip(torch.stack([number.log() - 3, number.rsqrt()], -1)).unsqueeze(-2)

    def buffer(self, embedded_x: Tensor, y: Tensor, first_slot: int, told: Tensor | None = None) -> Tensor:
        """Buffer tokens `(*batch, T, d)` for slots `first_slot`, `first_slot + 1`, ... (counted from 0)."""
        tokens = embedded_x[..., : self.width] + self.outcomes(y, embedded_x, told) + self.role[BUFFER]
        return self.positions(tokens, first_slot)

    def target(self, embedded_x: Tensor, told: Tensor | None = None) -> Tensor:
        """Target tokens `(*batch, M, d)` of embedded inputs `(*batch, M, d)`."""
        tokens = embedded_x[..., : self.width] + self.role[TARGET]
        if told is None or self.traces is None:
            return tokens
        with torch.autocast(told.device.type, enabled=False):
            features = self.traces.squashed(told)
            added = self.told_out(F.gelu(self.told_in(features))) + self.told_skip(features)
        return tokens + added * (self.location(embedded_x) == 0).unsqueeze(-1)  # a latent has no trial before it


def _directions(count: int, dim_x: int, sequential: bool) -> Tensor:
    """Directions `(count, D_x)` of the frequencies before training, random ones.

    Those of a series are along one column each: mixed with another, the number of the trial would lose its phase.
    """
    if sequential:
        return F.one_hot(torch.arange(count) % dim_x, dim_x).to(torch.get_default_dtype())
    return F.normalize(torch.randn(count, dim_x), dim=-1)
