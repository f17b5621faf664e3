"""The commands of `run.py`: what a command is told, and which room does its work; nothing is computed here."""
