"""Diagnosis of trained networks: hotter or colder, wider, more data, from loss landscape measures."""
