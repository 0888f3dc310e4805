"""The test suites, one after another or in lanes side by side, and how long each takes."""
