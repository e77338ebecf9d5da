"""The native engine's parts, run one at a time, and AMX where the processor has none."""
