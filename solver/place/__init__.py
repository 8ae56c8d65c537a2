"""Expert placement: which replica of which logical expert sits on which rank, layer by layer.

Shape suffixes of this room: L layers, K windows, E logical experts, R ranks, N slots of all ranks. Loads of a window
are normalised: the mean rank load is 1, so that the balancedness of a layer is 1 / (its busiest rank's load).
"""
