"""All that runs inside vLLM's processes: the signal tap, weight transfer and the guard of its
routes.
"""
