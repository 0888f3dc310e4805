"""What records mean: each format's records become rows. They know no files."""
