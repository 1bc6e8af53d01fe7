"""Analysis of metrics and episodes: exploration, collapse, comparisons, intervals. Pure."""
