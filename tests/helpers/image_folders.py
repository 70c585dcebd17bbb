"""Folders of random images."""

from PIL import Image

SIZE = 16


def write_images(folder, count, size=(SIZE, SIZE), suffix=".png"):
    """`count` constant grey images, each of its own level: 0, 8, 16, …"""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"part_{index:03d}{suffix}" for index in range(count)]
    for index, path in enumerate(files):
        Image.new("L", size, 8 * index).save(path)
    return files
