"""From a user's tensors to densities and draws: checks, contexts, orders, the chain."""
