"""Who may do what: users, roles, tokens and the audit log."""
