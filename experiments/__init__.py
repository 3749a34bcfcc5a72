"""Thin scripts, one question each. Every file without a leading underscore is a command of ``secure-ml``."""
