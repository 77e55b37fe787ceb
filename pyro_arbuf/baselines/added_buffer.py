"""`add_buffer`: a buffer for a set model that was trained without one, whose weights stay as they are.

What is trained are the slots' positions and, layer by layer, low-rank adapters of attention, a gate, or both. They act
on tokens of the buffer and on what targets read of them, so that predictions with an empty buffer are those of the set
model, bit for bit. Paper, section 6: parameter-efficient fine-tuning that adds the buffer to a pretrained model.
"""

import copy
import dataclasses
from typing import Self

import torch
from torch import Tensor, nn

from pyro_arbuf.baselines.adapters import ATTENTION, AdaptedBlock
from pyro_arbuf.baselines.tnp_d import TNPD
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.attention import attend
from pyro_arbuf.network.backbone import Backbone, Block, most_draws
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.cache import Buffer, ContextCache, KeysValues
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.heads import Head
from pyro_arbuf.network.lags import Turn, joined_turns
from pyro_arbuf.network.network import own_parts
from pyro_arbuf.network.parts import RANKS
from pyro_arbuf.network.visibility import buffer_prefix_len


class PairEmbedder(Embedder):
    """Pairs of the buffer look like those of the context, with a learned vector for each slot, at first zero."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        nn.init.zeros_(self.slots)

    @property
    def slots(self) -> nn.Parameter:
        """The positions of the slots, `(K, d)`."""
        return self.positions.get_parameter("slot")

    def buffer(self, embedded_x: Tensor, y: Tensor, first_slot: int, told: Tensor | None = None) -> Tensor:
        """Tokens `(*batch, T, d)` for slots `first_slot`, `first_slot + 1`, ... (counted from 0)."""
        return self.positions(self.context(embedded_x, y, told), first_slot)


class AdaptedBackbone(Backbone):
    """Frozen blocks for contexts and targets, adapted ones for the buffer and for what targets read of it.

    Args:
        config: Sizes, and what is added.
        frequencies: Of the angles of a series, see `Block`.
        frozen: The backbone whose blocks are taken; `None` = those that the configuration describes, of random weights.
    """

    def __init__(self, config: ModelConfig, frequencies: Tensor | None = None, frozen: Backbone | None = None):
        sizes = (config.width, config.num_layers, config.num_heads, config.mlp_width, config.scaled_queries)
        super().__init__(*sizes, frequencies)
        if frozen is not None:
            self.blocks, self.scaled = frozen.blocks, frozen.scaled
        self.one_query = False
        added, last = (config.adapter_rank, config.gated_read), self._layers[-1]
        self.adapted = nn.ModuleList(AdaptedBlock(block, *added, block is last) for block in self._layers)

    def read(
        self,
        cache: ContextCache,
        buffer: Buffer,
        buffer_tokens: Tensor | None,
        target_tokens: Tensor,
        prefix_len: Tensor | None = None,
        buffer_turn: Turn | None = None,
        target_turn: Turn | None = None,
    ) -> tuple[Tensor, Buffer]:
        """As `Backbone.read`; with an empty buffer it is that of the frozen blocks."""
        entering = None if buffer_tokens is None or not buffer_tokens.shape[-2] else buffer_tokens
        if entering is None and not buffer.num_slots:
            return super().read(cache, buffer, None, target_tokens, prefix_len, None, target_turn)
        num_draws = most_draws(buffer, prefix_len, entering, target_tokens)
        slots: list[KeysValues] = []
        if entering is not None:
            entering, turn = entering.expand(-1, num_draws, -1, -1), joined_turns(buffer_turn, None, num_draws)
            slots = self._fill(cache, buffer, entering, turn)
        tokens, turn = target_tokens.expand(-1, num_draws, -1, -1), joined_turns(target_turn, None, num_draws)
        num_keys = self._num_keys(
            tokens, cache.context_len, cache.keys[0].shape[-2], self._num_slots(buffer, entering), prefix_len
        )
        for layer, (block, adapted) in enumerate(self._pairs):
            held = slots[layer] if slots else buffer.stored(layer)
            context_kv, buffer_kv, context_len = buffer.sources(cache, layer, held)
            normed = block.norm_attention(tokens)
            of_buffer = adapted.of_targets(normed, num_keys, turn)
            q = block.q(normed, num_keys, turn)
            tokens = block.update(tokens, attend(q, context_kv, buffer_kv, prefix_len, context_len, of_buffer))
        return tokens, buffer.extended(slots) if slots else buffer

    @property
    def _pairs(self) -> list[tuple[Block, AdaptedBlock]]:
        adapted = [block for block in self.adapted if isinstance(block, AdaptedBlock)]
        return list(zip(self._layers, adapted, strict=True))

    def _num_slots(self, buffer: Buffer, entering: Tensor | None) -> int:
        return buffer.num_slots + (0 if entering is None else entering.shape[-2])

    def _fill(self, cache: ContextCache, buffer: Buffer, tokens: Tensor, turn: Turn | None) -> list[KeysValues]:
        """Keys and values of every layer of the buffer with tokens `(B, S, T, d)` behind it."""
        own = buffer_prefix_len(buffer.num_slots, tokens.shape[-2], tokens.device)
        num_keys = self._num_keys(tokens, cache.context_len, cache.keys[0].shape[-2], 0, own)
        grown: list[KeysValues] = []
        for layer, adapted in enumerate(adapted.block for _, adapted in self._pairs):
            normed = adapted.norm_attention(tokens).contiguous()
            grown.append(buffer.append(layer, *adapted.kv(normed, turn)))
            if layer + 1 < len(self.adapted):  # nobody reads their own output of the last layer
                context_kv, buffer_kv, context_len = buffer.sources(cache, layer, grown[layer])
                q = adapted.q(normed, num_keys, turn)
                tokens = adapted.update(tokens, attend(q, context_kv, buffer_kv, own, context_len))
        return grown


class TNPDBuffer(ArBufferModel):
    """A frozen `TNPD` with a buffer that was added to it, see `add_buffer`; what was added is all that is trained.

    Args:
        config: Sizes, and what is added.
        frozen: The backbone whose blocks are taken; `None` = those that the configuration describes, of random weights.
        head: The frozen head; likewise.
    """

    architecture = "tnp-d-buffer"

    def __init__(self, config: ModelConfig, frozen: Backbone | None = None, head: Head | None = None):
        embedder = PairEmbedder(config)
        frequencies = None if config.lag_column is None else embedder.turn_frequencies
        super().__init__(config, embedder, AdaptedBackbone(config, frequencies, frozen), head)
        self.requires_grad_(True)

    @property
    def added(self) -> list[nn.Parameter]:
        """The weights that were added: of the adapted blocks, and the positions of the slots."""
        return [*self.backbone.get_submodule("adapted").parameters(), self.embedder.positions.get_parameter("slot")]

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Says whether what was added requires gradients; the weights of the set model never do."""
        super().requires_grad_(False)
        for weight in self.added:
            weight.requires_grad_(requires_grad)
        return self

    def loss(self, batch: Batch) -> Tensor:
        """Mean negative log density, nats, of the targets that read the buffer: the others' cannot be changed."""
        if batch.prefix_len.dim() == 1 and bool((batch.prefix_len > 0).any()):
            reading = batch.prefix_len > 0
            parts = {name: getattr(batch, name)[:, reading] for name in ("x_target", "y_target")}
            batch = batch._replace(**parts, prefix_len=batch.prefix_len[reading])
        return super().loss(batch)


def add_buffer(net: ArBufferModel, rank: int | None = 8, gated_read: bool = False) -> TNPDBuffer:
    """Adds a buffer to a set model that was trained without one; `fit` then trains what was added, and nothing else.

    With an empty buffer the predictions are those of `net`, bit for bit, before and after training. `save` writes the
    weights of both into one folder, and `load` gives the network back.

    Args:
        net: A network of architecture "tnp-d", which is left as it is; its blocks and its head may be of classes of
            your own.
        rank: Rank of the changes to the four attention matrices of every block, 2 to 16, by which tokens of the buffer
            differ from those of a context, and targets read them; `None` = the matrices stay as they are.
        gated_read: Whether targets learn besides, in every head, how much of their attention the buffer gets.

    Returns:
        A network with `net.config.buffer_size` slots, of which only what was added requires gradients. Before training
        its pairs are read as if they had been appended to the context without encoding this anew.

    Raises:
        ValueError: If `net` has a buffer, is of another architecture, or has parts of your own other than blocks and
            head, or `rank` is not in 2..16, or is None without a gated read.

    Source:
        Hu et al. (2022), "LoRA"; gates over what is remembered: Wu et al. (2022), "Memorizing transformers".

    Example:
        >>> from pyro_arbuf.baselines import make_model
        >>> net = add_buffer(make_model(ModelConfig(architecture="tnp-d")), rank=4)
        >>> sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
        8704
    """
    if not isinstance(net, ArBufferModel):
        raise ValueError(f"net must be an ArBufferModel; got {type(net).__name__}; load one with pyro_arbuf.load(name)")
    if net.config.architecture != "tnp-d":
        raise ValueError(
            f"net must be a set model without a buffer, of architecture 'tnp-d'; got {net.config.architecture!r}"
            + ("; it has a buffer, which fit trains" if "buffer" in net.config.architecture else "")
        )
    _check_parts(net)
    low, high = RANKS
    if isinstance(rank, bool) or not (rank is None or (isinstance(rank, int) and low <= rank <= high)):
        raise ValueError(f"rank must be an integer in {low}..{high}, or None; got {rank!r}")
    if rank is None and not gated_read:
        raise ValueError("rank must not be None where gated_read=False; got both; give a rank, or gated_read=True")
    added = {"architecture": "tnp-d-buffer", "adapter_rank": rank or 0, "gated_read": gated_read}
    like = next(net.parameters())
    config = dataclasses.replace(net.config, **added, evidence_rmse=None, evidence_trials=None)
    new = TNPDBuffer(config, *copy.deepcopy((net.backbone, net.head))).to(like.device, like.dtype).eval()
    slots = "embedder.positions.slot"  # never trained without a buffer
    new.load_state_dict({n: value for n, value in net.state_dict().items() if n != slots}, strict=False)
    return new


def _check_parts(net: ArBufferModel) -> None:
    """Raises ValueError if a network has parts that a buffer cannot be added to, or that would be left behind."""
    with torch.device("meta"):
        own = own_parts(net, TNPD(net.config))
    kept = ("backbone.blocks.", "head.")
    foreign = [f"{name or 'net'}: {kind}" for name, kind in own.items() if not f"{name}.".startswith(kept)]
    if foreign:
        raise ValueError(
            f"net may have no parts of your own but blocks and a head, or its predictions would change; got {foreign}; "
            "move what they compute into a block or the head"
        )
    for number, block in enumerate(net.backbone.blocks):
        if not all(isinstance(getattr(block, name, None), nn.Linear) for name in ATTENTION):
            raise ValueError(
                f"every block must have the linear maps {', '.join(ATTENTION)}, which adapters change; block {number}, "
                f"a {type(block).__name__}, has not"
            )
