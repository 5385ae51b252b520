"""A site: how it joins, its connection, its rules, and what lies on its disk. Needs no torch."""
