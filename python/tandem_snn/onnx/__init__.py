"""Exports to ONNX, and to QONNX of networks in integers."""
