"""All that runs inside vLLM's processes.

It is the signal tap, weight transfer and the guard of its routes.
"""
