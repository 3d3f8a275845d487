"""Networks: what layers an architecture has and how wide they are, and forward passes of many networks at a time.

Here live architectures (without PyTorch), convolutional networks, LSTM language models and a user's own torch.nn.Module.
Every room above may import it; it imports `config`, `runtime` and `errors`.
"""
