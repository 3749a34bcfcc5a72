"""Encrypted inference between two computers: a server that is asked over HTTP, and the client that keeps the key.

It neither authenticates clients nor proves that an answer is the model's. A reverse proxy in front of it can do the
former; nothing here gives the latter, since the scheme protects against a semi-honest server only. Over TLS nobody in
between learns who asks when, or puts another model in the place of the server's.
"""
