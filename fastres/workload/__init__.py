"""The model and the inputs of a command: built by name, with weights that give telling outputs."""
