"""The graph: its operators, their shapes and dtypes, and the helpers that rewrite it."""
