"""Reads people's files: what a table holds is decided first, told, and then read row by row."""
