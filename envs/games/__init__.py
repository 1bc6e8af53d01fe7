"""Text games of other libraries behind our interface: one adapter a library.

They need `pip install -e '.[games]'`.

game (what they share: prompt, format, splits by seed) <- textarena, gymnasium
"""
