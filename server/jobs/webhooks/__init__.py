"""Deliveries to webhook endpoints: in parallel, or in order."""
