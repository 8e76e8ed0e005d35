"""Networks in integers: thresholds of integer sums, and their export to C99."""
