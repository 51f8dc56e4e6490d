"""PPO of rejax on the work of the group `peers`: run by the peer's own Python, which need not know this package.

python rejax_ppo.py SEEDS ITERATIONS: prints `ready`, then for every line of its input the CPU seconds of a whole run.
"""

import sys
import time
from typing import Any

ENVIRONMENTS, ROLLOUT, MINIBATCHES, EPOCHS = 16, 2048, 16, 10


def main(seeds: int, iterations: int) -> None:
    """Compile once, then answer."""
    import jax
    import rejax  # pyright: ignore[reportMissingImports]
    from rejax.compat import brax2gymnax  # pyright: ignore[reportMissingImports]

    env, env_params = brax2gymnax.create_brax("ant", backend="spring", episode_length=1000)
    algorithm: Any = rejax.PPO.create(
        env=env,
        env_params=env_params,
        total_timesteps=ROLLOUT * iterations,
        eval_freq=ROLLOUT * iterations,
        skip_initial_evaluation=True,
        num_envs=ENVIRONMENTS,
        num_steps=ROLLOUT // ENVIRONMENTS,
        num_epochs=EPOCHS,
        num_minibatches=MINIBATCHES,
        learning_rate=1e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        vf_coef=1.0,
        ent_coef=0.0,
        max_grad_norm=1e9,
        normalize_observations=False,
        agent_kwargs={"activation": "relu", "hidden_layer_sizes": (256, 256)},
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: jax.numpy.zeros([]))  # nothing is evaluated
    keys = jax.random.split(jax.random.key(0), seeds)
    run = jax.jit(jax.vmap(algorithm.train) if seeds > 1 else lambda keys: algorithm.train(keys[0]))
    jax.block_until_ready(run(keys))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        jax.block_until_ready(run(keys))
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
