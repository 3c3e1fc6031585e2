"""TIFF files of any size: read by windows, written tile by tile.

source.py   reading windows of a file; what cannot be read so is said in words
tags.py     what a result carries of its source, the place on a map among it
target.py   the part file and its journal, from which an interrupted run goes on
windows.py  the windows of an image, each read, planned, upscaled and packed by itself
run.py      the run: window after window
cluster.py  the workers of a Ray cluster, which make windows for it
"""
