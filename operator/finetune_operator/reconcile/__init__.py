"""Pure: one file a kind, `(resource, snapshot) -> Plan`."""
