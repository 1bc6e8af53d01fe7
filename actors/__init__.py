"""Playing episodes: many processes, each with its environment, none with a model."""
