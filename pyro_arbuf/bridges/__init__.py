"""The learned likelihood for users of other probabilistic languages; nothing else imports JAX or PyTensor."""
