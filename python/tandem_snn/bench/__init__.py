"""``tandem-snn bench``: this package compared with the ANN, plain PyTorch and other libraries.

cases.py lists what is measured; problems.py draws spikes and networks; rivals.py computes each network in every way;
measure.py samples the rivals of a case in turn, in a process of its own; command.py prints the table.
"""
