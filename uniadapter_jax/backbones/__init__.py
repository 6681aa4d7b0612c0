"""Frozen vision-language backbones. They know no method; methods act at their named places."""
