"""Network access: one place for credentials, addresses, time limits and retries."""
