"""The load: an epoll loop that plays customers, merchants and a PSP."""
