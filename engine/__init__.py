"""Everything that knows vLLM: starting it, speaking to it, and what runs inside it."""
