r"""Joint sampling by draft and verify: the law of plain decoding, in fewer passes.

All targets of a block are drafted at once. One causal pass then says of each draft y from what it would have been drawn
given those before it: p, where it came from q. Drafts are accepted one after the other with probability
min(1, p(y) / q(y)); at the first that is not, y is drawn anew from the residual, of density max(0, p - q), and those
behind it are drafted again. Each target has the law p given those before it, whatever the drafts came from.

First drafts come from the marginals, later ones from what the last pass predicted, whose prefix was right up to the
rejection and plausible behind it. The noise of a target serves all its drafts: what it is drafted from depends on the
noise of the targets before it alone. So all noise is drawn up front, as in plain decoding, and where p = q the draws
are those of plain decoding. Knows nothing of Pyro, nor of what a predictive is made of.

Deviation: the paper names speculative decoding as future work.

Source:
    Leviathan, Kalman, Matias (2023), "Fast inference from transformers via speculative decoding".
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.inference.blocks import Block, Noise, blocks
from pyro_arbuf.inference.chain import drawn_chains
from pyro_arbuf.inference.context import Context, check_current
from pyro_arbuf.inference.layout import MAX_TOKENS
from pyro_arbuf.network.cache import BufferCache, ContextCache
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.predictives import Predictive
from pyro_arbuf.network.visibility import chain_prefix_len

FEW_TRIES, MOST_TRIES = 32, 2**16  # at residuals in one go: of each, of all
TENS_OF_THOUSANDS, MILLIONS = 2**16, 2**24  # random numbers after which rounding may end the tries
ROUNDING = 8.0  # times the resolution of a dtype: log densities that differ by less agree
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


class DraftedDraws(NamedTuple):
    """Joint draws by draft and verify, and what each of them took.

    Attributes:
        draws: `(*batch, M)` or `(*batch, M, D_y)`, units of y.
        passes: `(*batch,)` int64, passes of the network, the one that drafts counted; plain decoding takes M.
        verified: `(*batch,)` int64, drafts whose acceptance was decided.
        accepted: `(*batch,)` int64, how many of them were accepted.
    """

    draws: Tensor
    passes: Tensor
    verified: Tensor
    accepted: Tensor


@torch.no_grad()
def draft_joint(
    context: Context,
    x: Tensor,
    orders: Tensor,
    buffer_size: int,
    noise: Noise,
    keys: Tensor,
    max_tokens: int = MAX_TOKENS,
) -> DraftedDraws:
    """Draws from the law of `sample_joint`; drafts never cross the end of a block.

    Args:
        context: Conditions B tasks.
        x: `(B, S or 1, M, D_x)` target inputs.
        orders: `(R, M)` int64.
        buffer_size: Targets per block.
        noise: Of all draws.
        keys: `(B, S, M, 1)` int64, of `draw_keys`: what acceptance and residuals are decided by.
        max_tokens: Bounds memory; changes nothing else.

    Returns:
        Draws `(B, S, M, D_y)`, their passes and drafts `(B, S)`.

    Raises:
        RuntimeError: If the weights have changed since the context was made.
    """
    check_current(context)
    draws = torch.empty_like(noise.normal)
    counts = torch.zeros(*draws.shape[:2], 3, dtype=torch.int64, device=draws.device)
    with torch.inference_mode():
        for here, chain, own in drawn_chains(context, x, orders, buffer_size, noise, max_tokens):
            drawn: list[Tensor] = []
            for block in blocks(chain, drawn):
                uniform, normal, key = (block.own(part) for part in (*own[:2], keys[here]))
                values, count = _drafted(context.model, block, uniform, normal, key.squeeze(-1))
                drawn.append(values)
                counts[here] += count.reshape(*counts[here].shape)
            draws[here] = chain.restored(drawn).squeeze(2)
    return DraftedDraws(draws, *counts.unbind(-1))


class _Drafts(NamedTuple):
    """Draws of a block that are not finished: of some tasks B, of each as many draws S.

    Attributes:
        at: Which tasks and draws they are, `(B, 1)` and `(B, S)` int64.
        cache: The context of the tasks.
        targets: `(B, S or 1, T, d)` embedded.
        noise: Uniform and normal, `(B, S, T, D_y)`.
        key: `(B, S, T)` int64.
        values: `(B, S, T, D_y)`, settled ones and drafts behind them.
        drafter: What drafts were drawn from, batch shape `(B, S, T, D_y)`.
        settled: `(B, S)` int64, how many values are settled.
    """

    at: tuple[Tensor, Tensor]
    cache: ContextCache
    targets: Tensor
    noise: tuple[Tensor, Tensor]
    key: Tensor
    values: Tensor
    drafter: Predictive
    settled: Tensor

    def unfinished(self) -> "_Drafts":
        """Those without the tasks and draws that are finished, but for a task's draws as far as another has more."""
        is_open = self.settled < self.values.shape[2]
        if bool(is_open.all()):
            return self
        tasks = is_open.any(1).nonzero().squeeze(1)
        most = int(is_open.sum(1).amax()) if len(tasks) else 0
        here = (tasks[:, None], is_open[tasks].byte().argsort(dim=1, descending=True, stable=True)[:, :most])

        def part(tensor: Tensor) -> Tensor:
            return tensor[here]

        cache = self.cache if len(tasks) == len(is_open) else self.cache.select(tasks)
        targets = self.targets[tasks] if self.targets.shape[1] == 1 else self.targets[here]
        noise, key, values = (part(self.noise[0]), part(self.noise[1])), part(self.key), part(self.values)
        at = (self.at[0][tasks], part(self.at[1]))
        return _Drafts(at, cache, targets, noise, key, values, self.drafter.map(part), part(self.settled))


def _drafted(model: Network, block: Block, uniform: Tensor, normal: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Outcomes of a block, `(B, S, T, D_y)`, and counts of passes, drafts verified and accepted, `(B, S, 3)`."""
    drafter = model.predict(block.cache, BufferCache(), None, block.targets)[0].expand(normal.shape)
    values, (num_tasks, num_draws) = drafter.draw(uniform, normal), normal.shape[:2]
    tasks, draws = (torch.arange(n, device=key.device) for n in (num_tasks, num_draws))
    at = (tasks[:, None], draws.expand(num_tasks, -1))
    settled = torch.ones_like(key[..., 0])  # the first target reads no other: its marginal is what it is drawn from
    drafts = _Drafts(at, block.cache, block.targets, (uniform, normal), key, values, drafter, settled)
    counts = torch.stack([settled, 0 * settled, 0 * settled], -1)
    while (drafts := drafts.unfinished()).values.numel():
        was, (drafts, accepted) = drafts.settled, _verified(model, drafts)
        values[drafts.at] = drafts.values
        verified = drafts.settled - was
        counts[drafts.at] += torch.stack([(verified > 0).long(), verified, accepted], -1)
    return values, counts


def _verified(model: Network, drafts: _Drafts) -> tuple[_Drafts, Tensor]:
    """One pass: every draw settles drafts up to the first that is rejected, that one too; how many were accepted."""
    num_targets, shape = drafts.values.shape[2], drafts.values.shape
    place = chain_prefix_len(num_targets, drafts.key.device)
    pairs = (drafts.targets[:, :, :-1], drafts.values[:, :, :-1])
    verifier, _ = model.predict(drafts.cache, BufferCache(), pairs, drafts.targets, place)
    verifier = verifier.expand(shape)
    log_ratio = (verifier.log_prob(drafts.values) - drafts.drafter.log_prob(drafts.values)).sum(-1)  # (B, S, T)
    log_chance = stream(drafts.key, 0, 1).squeeze(-1).log()
    holds = (log_chance <= log_ratio) | (place < drafts.settled.unsqueeze(-1))
    stop = holds.cumprod(-1).sum(-1)  # the place of the first that does not
    again = verifier.draw(*drafts.noise)
    b, s = (stop < num_targets).nonzero(as_tuple=True)
    here = (b, s, stop[b, s])
    again[here] = residual(_rows(verifier, here), _rows(drafts.drafter, here), drafts.key[here], again.dtype)
    values = torch.where((place < stop.unsqueeze(-1)).unsqueeze(-1), drafts.values, again)
    settled = (stop + 1).clamp(max=num_targets)
    return drafts._replace(values=values, drafter=verifier, settled=settled), stop - drafts.settled


def residual(p: Predictive, q: Predictive, key: Tensor, dtype: torch.dtype) -> Tensor:
    """Draws of density proportional to max(0, p - q): draws of p, each kept with probability max(0, 1 - q / p).

    The rarer a rejection, the more tries it takes: together one on average for each draft. There is no last try, but
    where rounding hides the difference: p and q agree to rounding in tens of thousands of tries, or p is nowhere the
    larger in millions. Then it is a draw of p, off in law by less than single precision resolves.

    Args:
        p: Batch shape `(E, D_y)`.
        q: Likewise.
        key: `(E,)` int64.
        dtype: Of the draws.

    Returns:
        `(E, D_y)`.
    """
    (count, dim), first, tries = p.batch_shape, 1, FEW_TRIES
    values = torch.zeros(count, dim, dtype=dtype, device=key.device)
    pending = torch.arange(count, device=key.device)
    differ = larger = torch.zeros_like(key, dtype=torch.bool)  # p from q, and p than q, in a try so far
    while len(pending):
        tries = min(tries, max(1, MOST_TRIES // len(pending)))
        numbers = stream(key[pending], first, tries * (1 + 2 * dim)).unflatten(-1, (tries, -1)).transpose(0, 1)
        chance, uniform, normal = numbers.split((1, dim, dim), -1)  # (tries, E, .)
        p_here, q_here = (_rows(each, pending).expand(uniform.shape) for each in (p, q))
        y = p_here.draw(_below_one(uniform, dtype), torch.special.ndtri(normal).to(dtype))
        log_ratio = (p_here.log_prob(y) - q_here.log_prob(y)).sum(-1)
        kept = chance.squeeze(-1) < -torch.expm1(-log_ratio)
        rounding = ROUNDING * torch.finfo(log_ratio.dtype).eps
        differ, larger = differ | (log_ratio.abs() > rounding).any(0), larger | (log_ratio > rounding).any(0)
        first, tries = first + tries * (1 + 2 * dim), 4 * tries
        done = kept.any(0) | (~differ & (first > TENS_OF_THOUSANDS)) | (~larger & (first > MILLIONS))
        chosen = y[kept.int().argmax(0), torch.arange(len(pending), device=key.device)]  # the first that is kept
        values[pending[done]] = chosen[done].to(dtype)
        pending, differ, larger = pending[~done], differ[~done], larger[~done]
    return values


def _rows(predictive: Predictive, index: Tensor | tuple[Tensor, ...]) -> Predictive:
    return predictive.map(lambda part: part[index])


def _below_one(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    return uniform.to(dtype).clamp(max=1 - torch.finfo(dtype).eps)


def draw_keys(noise: Noise) -> Tensor:
    """A key `(B, S, M, 1)` int64 for every target of joint draws, with torch's global generator."""
    limits = torch.iinfo(torch.int64)
    shape = (*noise.normal.shape[:3], 1)
    return torch.randint(limits.min, limits.max, shape, dtype=torch.int64, device=noise.normal.device)


def stream(key: Tensor, first: int, count: int) -> Tensor:
    """Independent uniform numbers, as many as are asked for, of which a key fixes each.

    Args:
        key: `(*batch,)` int64, drawn at random.
        first: Which number of the stream is the first.
        count: How many.

    Returns:
        `(*batch, count)` float64 in (0, 1).

    Source:
        Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators": SplitMix64.
    """
    z = key.unsqueeze(-1) + GOLDEN * torch.arange(first + 1, first + 1 + count, device=key.device)  # modulo 2^64
    for shift, factor in MIX:
        z = (z ^ _shifted(z, shift)) * factor
    return (_shifted(z ^ _shifted(z, 31), 12).double() + 0.5) * 2.0**-52


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Unsigned numbers of 64 bits, shifted to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
