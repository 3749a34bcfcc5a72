"""Audits: lower bounds on epsilon from what training shows of planted examples."""
