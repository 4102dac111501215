"""What a trained model is worth: figures with their counts and intervals, beside the baselines that anyone can reach.

Functions take arrays and strings and return plain facts; nothing here reads, writes or prints.
"""
