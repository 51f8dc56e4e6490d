"""Methods against loss of plasticity: one optax transformation a file."""
