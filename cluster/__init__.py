"""On top: the command line, settings, the local cluster and the training job's entry point."""
