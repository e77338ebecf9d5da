"""The engine on oneDNN, through the operators of ``torch.ops.mkldnn``."""
