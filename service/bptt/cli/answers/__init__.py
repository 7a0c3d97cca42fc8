"""Answers of models for people: digits, tables in files, charts."""
