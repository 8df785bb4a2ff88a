"""Which job starts, which is asked to make room, and why every other one waits: pure passes over plain values."""
