"""The miniature model: training of its parts, and assembly."""
