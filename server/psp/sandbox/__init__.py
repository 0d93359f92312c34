"""The sandbox PSP's adapter."""
