"""The load generators: an epoll loop that plays customers, merchants and a PSP."""
