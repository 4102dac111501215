"""Choices between two answers: who makes them, how they are gathered, and how far people agree. No torch here."""
