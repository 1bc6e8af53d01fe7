"""A server that speaks as vLLM's does, with a policy on PyTorch.

It is for tests and runs without vLLM.
"""
