"""What draws a result: one file for each kind of figure."""
