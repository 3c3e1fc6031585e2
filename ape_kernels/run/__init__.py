"""Runs packed programs; the one caller of the operations in `ape_kernels.ops` besides `ape_kernels.plan`.

patches.py  patches on their own, and whole images cut into patches and merged
images.py   whole images on shared feature maps
levels.py   the same with pixels and picture as whole numbers
runner.py   which of these a call takes, all settings resolved
windows.py  parts of images with the whole image's own bits
parts.py    plans for such parts
"""
