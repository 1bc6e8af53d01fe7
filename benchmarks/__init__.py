"""`python -m benchmarks.NAME`: what was measured, beside what one would do instead.

Results are kept in docs/measurements/performance.md.
"""
