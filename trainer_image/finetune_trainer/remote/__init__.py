"""All that goes over the network: one place for credentials, addresses, time limits and retries."""
