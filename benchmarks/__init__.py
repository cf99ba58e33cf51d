"""What this client costs and how much of a rate limit it uses, beside its peers: ``python -m benchmarks``."""
