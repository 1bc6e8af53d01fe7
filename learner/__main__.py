"""`python -m learner JOB [SECONDS]`: the learner of a run, or one of its ranks.

It is a rank with torchrun's variables in the environment. SECONDS: what the run had lasted before.
The limit `run.max_minutes` counts them.
"""

import gc
import sys

if __name__ == "__main__":
    # All that imports make stays: looking for garbage among it took a fifth of their time.
    gc.disable()
    from learner.process import start

    gc.enable()
    start(sys.argv[1:])
