"""What was found on hosts and when, kept in SQLite or PostgreSQL."""
