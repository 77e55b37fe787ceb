"""The Pyro distributions: joint, marginals, posterior."""
