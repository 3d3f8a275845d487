"""Networks and files from elsewhere: capture what layers give for any inputs, compare the layers in any files.

It needs neither a study nor what `pip install .[workflow]` adds.
Only `cli` imports it; it imports `results.figures`, `similarity` and the rooms at the bottom.
"""
