"""A page on runs, in a browser: what lies in their folders, as it comes. It reads, and changes nothing.

`app.py` says what can be asked for, `guard.py` who may ask; the words, numbers and tables are the report's.
"""
