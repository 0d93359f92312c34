"""`florin init`, `key`, `migrate`, `serve` and `haproxy`: a production instance."""
