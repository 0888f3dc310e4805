"""What the product needs to be tried, built and measured."""
