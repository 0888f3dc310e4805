"""What goes over the network: sources, base models and stores, against real servers."""
