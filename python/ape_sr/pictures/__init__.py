"""Files of images and pictures: how they are read and written, and what they carry besides pixels."""
