"""Environments of other libraries behind our interface: one adapter a library.

Each needs the extra of its name. What stands after the colon of `--env LIBRARY:TARGET` is the
keyword `target` of its factory.
"""
