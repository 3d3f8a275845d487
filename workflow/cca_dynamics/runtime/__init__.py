"""What long jobs on any machine need: files that are whole or not there, fingerprints of code, GPUs, signals, threads, streams.

Nothing here knows of networks or of the paper.
Every room above may import it; it imports `errors` alone.
"""
