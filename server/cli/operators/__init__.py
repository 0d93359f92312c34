"""Operators at the command line: who they are, who acts, and what they have asked for."""
