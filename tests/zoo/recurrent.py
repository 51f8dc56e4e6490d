"""Recurrent networks."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo.zoo import Network, architecture, linen, normal


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers with dropout between them, logits of the next token at every place."""

    cell: Callable[[int], nn.RNNCellBase]
    width: int
    vocabulary: int
    layers: int = 2
    dropout: float = 0.5

    @nn.compact
    def __call__(self, tokens, train=True):
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
        x = drop(nn.Embed(self.vocabulary, self.width)(tokens))
        for _ in range(self.layers):
            x = drop(nn.RNN(self.cell(self.width))(x))
        return nn.Dense(self.vocabulary)(x)


@architecture("LSTM language model", "Zaremba et al. 2014, medium", 19_775_200)
def lstm_language_model(full: bool) -> Network:
    cell = nn.OptimizedLSTMCell
    if full:
        return linen(RecurrentLM(cell, 650, 10_000, dropout=0.0), np.zeros((1, 35), np.int32), found=(2, 1300, 1300))
    return linen(RecurrentLM(cell, 4, 7, dropout=0.0), np.array([[1, 2, 3]], np.int32), found=(2, 8, 8))


@architecture("GRU language model", "Cho et al. 2014, sizes of Zaremba's small")
def gru_language_model(full: bool) -> Network:
    if full:
        net = RecurrentLM(nn.GRUCell, 200, 10_000, dropout=0.0)
        return linen(net, np.zeros((1, 20), np.int32), found=(2, 400, 400))
    return linen(RecurrentLM(nn.GRUCell, 4, 7, dropout=0.0), np.array([[1, 2, 3]], np.int32), found=(2, 8, 8))


@architecture("Elman network", "Elman 1990")
def elman(full: bool) -> Network:
    width, words = (150, 1000) if full else (4, 7)
    net = RecurrentLM(nn.SimpleCell, width, words, layers=1, dropout=0.0)
    return linen(net, np.array([[1, 2, 3]], np.int32), found=(1, width, width))


class Tagger(nn.Module):
    """Graves and Schmidhuber 2005: two directions side by side, a label at every place."""

    width: int
    labels: int = 5

    @nn.compact
    def __call__(self, x):
        x = nn.Bidirectional(nn.RNN(nn.LSTMCell(self.width)), nn.RNN(nn.LSTMCell(self.width)))(x)
        return nn.Dense(self.labels)(x)


@architecture("Bidirectional LSTM", "Graves & Schmidhuber 2005")
def bidirectional(full: bool) -> Network:
    width = 93 if full else 3
    return linen(Tagger(width), normal(2, 4, 6), found=(2, 2 * width, 2 * width))


class Translator(nn.Module):
    """Bahdanau et al. 2015: a decoder that attends to the encoder's states by a small network."""

    width: int
    vocabulary: int

    @nn.compact
    def __call__(self, source, target):
        memory = nn.RNN(nn.GRUCell(self.width), name="encoder")(nn.Embed(self.vocabulary, self.width)(source))
        query = nn.RNN(nn.GRUCell(self.width), name="decoder")(nn.Embed(self.vocabulary, self.width)(target))
        keys, asked = nn.Dense(self.width, name="keys")(memory), nn.Dense(self.width, name="asked")(query)
        scores = nn.Dense(1, name="score")(jnp.tanh(keys[:, None] + asked[:, :, None]))[..., 0]
        context = nn.softmax(scores) @ memory
        x = nn.tanh(nn.Dense(self.width, name="mix")(jnp.concatenate([context, query], axis=-1)))
        return nn.Dense(self.vocabulary, name="head")(x)


@architecture("Attention over a GRU encoder", "Bahdanau et al. 2015")
def translator(full: bool) -> Network:
    width, words = (1000, 30_000) if full else (3, 5)
    tokens = np.array([[1, 2, 3]], np.int32), np.array([[4, 0]], np.int32)
    return linen(Translator(width, words), *tokens, found=(4, 4 * width, 4 * width))


class Nowcast(nn.Module):
    """Shi et al. 2015: LSTM cells whose products are convolutions."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.RNN(nn.ConvLSTMCell(width, (3, 3)))(x)
        return nn.Conv(1, (1, 1))(x)


@architecture("ConvLSTM", "Shi et al. 2015")
def conv_lstm(full: bool) -> Network:
    widths = (128, 64) if full else (3, 2)
    return linen(Nowcast(widths), normal(1, 3, 4, 4, 1), found=(2, sum(widths), sum(widths)))


class MinGru(nn.Module):
    """Feng et al. 2024: gates that do not see the state, so that steps are a parallel prefix sum."""

    width: int
    layers: int = 2

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            gate = nn.sigmoid(nn.Dense(self.width)(x))
            new = gate * nn.Dense(self.width)(x)
            join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])  # noqa: E731
            x = jax.lax.associative_scan(join, (1 - gate, new), axis=1)[1]
        return nn.Dense(2)(x)


@architecture("minGRU", "Feng et al. 2024")
def min_gru(full: bool) -> Network:
    width = 256 if full else 4
    return linen(MinGru(width), normal(2, 5, 3), found=(2, 2 * width, 2 * width))
