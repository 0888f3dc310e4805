"""How fast, and in how much memory, millions of rows are prepared; beside a script on `datasets`."""
