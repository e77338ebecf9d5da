"""Which model and which inputs: what all commands share."""
