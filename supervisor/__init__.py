"""Starting the processes of a run, watching them, and ending them together."""
