"""What every model that writes tokens shares: its read-out, and a cache of the right sizes."""

from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.layers.kv_cache import Device, Dtype, KVCache


class Decoder:
    """Features become logits of the next token: logits_t = U features_t, with U = E if tied.

    A base, before nn.Module, for what has `features(tokens, cache=…)`, `embedding` (E), `head`
    (None if tied) and `config`. Tokens are from 0 to V − 1 (looked at on the CPU alone). A cache
    holds the tokens before them, and is filled and advanced; all must fit into the context.
    """

    @property
    def head_weight(self) -> Float[Tensor, "V C"]:
        """U: the embedding matrix if the head is tied, else its own."""
        return self.embedding.weight if self.head is None else self.head.weight

    def read_out(self, features: Float[Tensor, "B T C"]) -> Float[Tensor, "B T V"]:
        """logits = features Uᵀ."""
        return features @ self.head_weight.T

    def forward(
        self, tokens: Int[Tensor, "B T"], *, cache: KVCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each one."""
        return self.read_out(self.features(tokens, cache=cache))

    def new_cache(
        self, batch: int, *, length: int | None = None, dtype: Dtype = None, device: Device = None
    ) -> KVCache:
        """An empty cache for 1 ≤ length ≤ context tokens; None means the context, and as U."""
        config, weight = self.config, self.head_weight
        expect.between(1, config.context, length=length)
        sizes = (config.num_layers, batch, config.num_heads, length or config.context)
        like = {"dtype": dtype or weight.dtype, "device": device or weight.device}
        return KVCache(*sizes, config.width // config.num_heads, **like)
