"""What long jobs on any machine need: whole files, fingerprints of code, GPUs, signals, threads, streams.

Nothing here knows of networks or of the paper.
Every room above may import it; it imports `errors` alone.
"""
