"""The promises as queries that must find nothing."""
