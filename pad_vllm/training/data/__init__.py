"""Preference data: records, their sources, and the groups that training reads."""
