"""Attacks with malformed input of every kind, each made from a seed."""
