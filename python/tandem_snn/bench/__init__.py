"""The performance contract, measured: ``tandem-snn bench``.

measure.py times candidates in turn; spikes.py makes spikes and says what they cost; network.py draws networks;
rivals/ computes them in every way; cases/ lists what is measured and what must be reached; run.py gathers results, each
measured by worker.py in a process of its own; show.py and report.py present them.
"""
