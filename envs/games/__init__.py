"""Text games of other libraries behind our interface (`pip install -e '.[games]'`): one adapter a
library.

game (what they share: prompt, format, splits by seed) <- textarena, gymnasium
"""
