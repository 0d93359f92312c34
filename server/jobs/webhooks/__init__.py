"""Deliveries to webhook endpoints, parallel and ordered."""
