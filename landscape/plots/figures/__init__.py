"""Functions that draw a result, one file for each kind of figure. They import `layout` and each other."""
