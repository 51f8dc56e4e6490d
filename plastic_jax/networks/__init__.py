"""The published networks, in Flax linen."""

from plastic_jax.networks.actor_critic import ActorCritic
from plastic_jax.networks.convnet import ConvNet
from plastic_jax.networks.layers import ACTIVATIONS, BatchNorm, dropped, kaiming_uniform, lecun_uniform, torch_uniform
from plastic_jax.networks.mlp import MLP, LeCunMLP
from plastic_jax.networks.resnet import BasicBlock, ResNet

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "ActorCritic",
    "BasicBlock",
    "BatchNorm",
    "ConvNet",
    "LeCunMLP",
    "ResNet",
    "dropped",
    "kaiming_uniform",
    "lecun_uniform",
    "torch_uniform",
]
