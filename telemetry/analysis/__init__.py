"""What metrics and episodes say, computed: exploration, collapse, comparisons, intervals. Pure."""
