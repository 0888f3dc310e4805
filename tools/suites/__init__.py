"""Run the test suites, with several sessions in parallel, and measure their duration."""
