"""int8: activations' ranges from calibration data, and the pass that quantises the fused graph."""
