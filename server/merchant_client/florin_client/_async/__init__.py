"""The client for asyncio and trio. `florin_client._blocking` is generated from these modules, except for its transport."""
