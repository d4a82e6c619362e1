"""Floating-point operations of training Whisper, by formula from its configuration.

What is counted is what model FLOPs utilisation counts (MFU; Chowdhery et al., PaLM, 2022, appendix B,
https://arxiv.org/abs/2204.02311): the multiplications and additions of all matrix products, 2 m n k for one of
[m, k] by [k, n], whole attention matrices without a discount for the causal half, and nothing for activations that are
computed anew in the backward pass. A convolution is the product of its unfolded input and its weights.

Backward, a product y = a b costs as much again for the gradient of each factor that has one: of weights where they are
trained, of the other factor where anything before it is trained. So a full backward pass takes twice the forward pass
but for the first convolution, whose input is data.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from transformers import WhisperConfig

_KERNEL = 3  # of both convolutions, in frames
_ENCODER = ".encoder."  # in the name of each of its weights
_STRIDE = 2  # of the second one: frames of features for each position of the encoder


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """Which weights a run trains.

    encoder, decoder: whether those of the base model are trained there.
    lora_rank: of the adapters that are trained instead; None without them.
    lora_encoder: whether the encoder has adapters, too.
    lora_targets: last names of the modules that have an adapter, such as `q_proj`.
    """

    encoder: bool = True
    decoder: bool = True
    lora_rank: int | None = None
    lora_encoder: bool = False
    lora_targets: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: torch.nn.Module) -> TrainedWeights:
        """Those of a Whisper, with or without adapters of peft, that carry a gradient."""
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        down = {name: weight for name, weight in trained.items() if ".lora_A." in name}
        of_base = [name for name in trained if ".lora_" not in name]
        return cls(
            encoder=any(_ENCODER in name for name in of_base),
            decoder=any(_ENCODER not in name for name in of_base),
            lora_rank=next((len(weight) for weight in down.values()), None),
            lora_encoder=any(_ENCODER in name for name in down),
            lora_targets=frozenset(name.partition(".lora_A.")[0].rpartition(".")[2] for name in down),
        )


class TrainingFlops:
    """Operations of one forward and backward pass."""

    def __init__(self, config: WhisperConfig, trained: TrainedWeights) -> None:
        self._config, self._trained = config, trained
        self._of_window = functools.lru_cache(maxsize=None)(self._count)

    def __call__(self, windows: int, label_positions: int) -> int:
        """windows: in the micro batch. label_positions: of the decoder in each of them, padding included.

        Padding is counted: the model computes it, be it silence after the last clip or labels after the last token.
        """
        return windows * self._of_window(label_positions)

    def _count(self, label_positions: int) -> int:
        encoder = _Encoder(self._config, self._trained)
        decoder = _Decoder(self._config, self._trained, label_positions, encoder_trains=encoder.trains)
        return encoder.flops + decoder.flops


class _Products:
    """Adds up products of one window, and follows through the layers whether a gradient is taken.

    flops: so far. A method is told whether its inputs carry a gradient, and returns whether its output does.
    """

    def __init__(self, *, weights: bool, lora_rank: int | None, lora_targets: frozenset[str]) -> None:
        self.flops = 0
        self._weights, self._lora_rank, self._lora_targets = weights, lora_rank, lora_targets

    def product(self, m: int, n: int, k: int, *, gradients: int) -> None:
        """[m, k] by [k, n]. gradients: of how many of the two factors."""
        self.flops += 2 * m * n * k * (1 + gradients)

    def linear(self, name: str, positions: int, inputs: int, outputs: int, *, live: bool) -> bool:
        """live: whether the inputs carry a gradient."""
        self.product(positions, outputs, inputs, gradients=self._weights + live)
        if self._lora_rank is None or name not in self._lora_targets:
            return self._weights or live
        self.product(positions, self._lora_rank, inputs, gradients=1 + live)
        self.product(positions, outputs, self._lora_rank, gradients=2)
        return True

    def attention(self, queries: int, keys: int, width: int, *, live: bool, keys_live: bool) -> bool:
        """queries, keys: positions. live: of what queries are made of; keys_live: of what keys and values are."""
        query = self.linear("q_proj", queries, width, width, live=live)
        key = self.linear("k_proj", keys, width, width, live=keys_live)
        value = self.linear("v_proj", keys, width, width, live=keys_live)
        self.product(queries, keys, width, gradients=query + key)
        weighing = query or key
        self.product(queries, width, keys, gradients=weighing + value)
        return self.linear("out_proj", queries, width, width, live=weighing or value)

    def mlp(self, positions: int, width: int, hidden: int, *, live: bool) -> bool:
        live = self.linear("fc1", positions, width, hidden, live=live)
        return self.linear("fc2", positions, hidden, width, live=live)


class _Encoder(_Products):
    """Features `[2 * positions, n_mels]` -> hidden states `[positions, width]`. trains: whether anything in it does."""

    def __init__(self, config: WhisperConfig, trained: TrainedWeights) -> None:
        rank = trained.lora_rank if trained.lora_encoder else None
        super().__init__(weights=trained.encoder, lora_rank=rank, lora_targets=trained.lora_targets)
        positions, width = config.max_source_positions, config.d_model
        live = self.linear("conv1", _STRIDE * positions, _KERNEL * config.num_mel_bins, width, live=False)
        live = self.linear("conv2", positions, _KERNEL * width, width, live=live)
        for _ in range(config.encoder_layers):
            # A residual connection carries a gradient past a block, too.
            live |= self.attention(positions, positions, width, live=live, keys_live=live)
            live |= self.mlp(positions, width, config.encoder_ffn_dim, live=live)
        self.trains = live


class _Decoder(_Products):
    """Label positions and the encoder's hidden states -> logits `[positions, vocabulary]`."""

    def __init__(self, config: WhisperConfig, trained: TrainedWeights, positions: int, *, encoder_trains: bool) -> None:
        super().__init__(weights=trained.decoder, lora_rank=trained.lora_rank, lora_targets=trained.lora_targets)
        width, heard = config.d_model, config.max_source_positions
        live = trained.decoder  # that of the token embedding, which is a look-up and no product
        for _ in range(config.decoder_layers):
            live |= self.attention(positions, positions, width, live=live, keys_live=live)
            live |= self.attention(positions, heard, width, live=live, keys_live=encoder_trains)
            live |= self.mlp(positions, width, config.decoder_ffn_dim, live=live)
        self.linear("proj_out", positions, width, config.vocab_size, live=live)
