"""How sure a figure is: numbers of rows in, intervals out. Knows neither models nor metrics."""
