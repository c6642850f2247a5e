"""What lays figures out: theme, grids of panels, scales, marks, names that fit."""
