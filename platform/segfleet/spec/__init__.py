"""Job specs: the values a user may write, their bounds, and how a short spec becomes a full one."""
