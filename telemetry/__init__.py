"""Numbers from every process: collected, written, shown, summed up.

Imports neither torch nor vllm.
"""
