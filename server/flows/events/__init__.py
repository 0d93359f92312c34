"""Events as merchants read them: live, by cursor, acknowledged."""
