"""For any Pyro model: predictive draws, checks, leave-one-out, ArviZ."""
