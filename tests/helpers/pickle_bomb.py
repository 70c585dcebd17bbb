"""A pickle that leaves a file behind when it is read: whether anything was unpickled can then be seen."""

import pickle


class Bomb:
    """Whoever unpickles it opens `marker` for writing."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def write_bomb(path, marker):
    """Write the pickle to `path`; reading it makes the file `marker`."""
    with open(path, "wb") as stream:
        pickle.dump(Bomb(marker), stream)
