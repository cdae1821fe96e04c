"""One concurrency runtime for threads, processes and coroutines."""
