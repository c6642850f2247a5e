"""What lays figures out, from the ground up; each imports only from those before it.

`paper` is the page, `fitting` folds and thins what has no room on it, `theme` sets colours and sizes; `grids`,
`planes`, `parts` and `scales` place panels, coordinates, names of parts and colours of losses; `marks`, `panels` and
`drawing` draw on them. `drawable` refuses numbers that are too large to draw.
"""
