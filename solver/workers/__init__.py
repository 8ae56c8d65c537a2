"""Where work is done: processes of this machine, or a Ray cluster, behind one small interface."""
