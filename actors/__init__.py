"""The state of the system: event buffer, item catalogue, counters, parameter store, training."""
