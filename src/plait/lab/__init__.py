"""The lab: one small server written in twelve ways, measured, and explained.

Importing this package loads nothing but itself. Tables, progress and plots come from
the extra ``plait[lab]`` and are imported by those who draw.
"""
