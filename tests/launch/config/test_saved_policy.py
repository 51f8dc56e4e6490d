"""Policies that can act on their own."""

import pytest

from launch.config.experiment import Experiment, resolve
from launch.config.saved_policy import policy_of
from launch.errors import InputError


def test_a_policy_with_a_memory_is_refused():
    task, learner = "ant(environment=fast,environments=2,episode_length=7)", "ppo(rollout=10,minibatches=2)"
    networks = {"plain": "actor_critic", "remembers": "actor_critic(memory=gru)"}
    plans = {
        label: resolve(Experiment(task, f"{label}=backprop", (0,), steps=10, network=network, learner=learner))
        for label, network in networks.items()
    }
    policy_of(plans["plain"], "plain")
    with pytest.raises(InputError, match=r"^remembers: its policy has a memory, and only policies without one"):
        policy_of(plans["remembers"], "remembers")
