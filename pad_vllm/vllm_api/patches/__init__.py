"""Every method of vLLM's that PAD wraps, one file for each place in vLLM.

pad_attributes.py lists the attributes that PAD sets on vLLM's objects. What PAD only reads of vLLM is
outside of this folder, in files that import nothing from here.
"""
