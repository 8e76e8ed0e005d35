"""The compiled module: importing it registers torch.ops.tandem."""
