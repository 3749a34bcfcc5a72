"""Certification: what is proved about single answers, beside what attacks find."""
