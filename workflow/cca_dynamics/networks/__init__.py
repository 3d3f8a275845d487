"""Networks: what layers an architecture has and how wide they are, and forward passes of many networks at a time.

Here live architectures (without PyTorch), convolutional networks, LSTM language models and modules of a user's own.
Every room above may import it; it imports `config`, `runtime` and `errors`.
"""
