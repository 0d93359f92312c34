"""The promises as queries that must return no rows."""
