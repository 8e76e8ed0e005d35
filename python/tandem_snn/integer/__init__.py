"""Networks in integers: thresholds of integer sums, and their exports to C99 and to QONNX."""
