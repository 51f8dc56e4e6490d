"""The published networks, in Flax linen."""

from plastic_jax.networks.actor_critic import ActorCritic
from plastic_jax.networks.convnet import ConvNet
from plastic_jax.networks.gpt import GPT
from plastic_jax.networks.layers import (
    ACTIVATIONS,
    NORMS,
    BatchNorm,
    Rational,
    dropped,
    kaiming_uniform,
    lecun_uniform,
    torch_uniform,
)
from plastic_jax.networks.mlp import MLP, LeCunMLP
from plastic_jax.networks.recurrent import RecurrentLM
from plastic_jax.networks.resnet import BasicBlock, ResNet

__all__ = [
    "ACTIVATIONS",
    "GPT",
    "MLP",
    "NORMS",
    "ActorCritic",
    "BasicBlock",
    "BatchNorm",
    "ConvNet",
    "LeCunMLP",
    "Rational",
    "RecurrentLM",
    "ResNet",
    "dropped",
    "kaiming_uniform",
    "lecun_uniform",
    "torch_uniform",
]
