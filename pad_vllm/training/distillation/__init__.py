"""Method `prompt`: dimensions from instructions; the base with one in its prompt is the teacher."""
