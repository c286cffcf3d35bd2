"""The model: towers, losses, counters, replay memory, metrics. Knows nothing of Ray or HTTP."""
