"""ALFWorld in pure Python: household tasks in text, as TextWorld's engine plays them.

The texts and rules are those of alfworld 0.4.2 (MIT) on textworld 1.7.0 (MIT);
`tests/unit/envs/alfworld/test_engine_parity.py` holds this engine to them. The room layouts in
`layouts.json` are facts taken from alfworld by `extract`.

    layouts.json -> scenes -> generate -> game -> engine -> environment <- memory, prompt, expert
"""
