"""Pages for people: charts, reports of runs, pages of episodes and of sweeps.

Pure: from records to HTML.
"""
