"""From an ``nn.Module`` to a graph and its contract, without changing the module."""
