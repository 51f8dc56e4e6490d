"""Image sets in which every picture says which it is, for tests of streams of pictures."""

import numpy as np


def write(path, classes, train, test, size=6):
    """An image set whose pictures hold their class in the first channel of every pixel, their number in the second.

    The third channel is noise; training and test pictures of a class are numbered from 0 each.
    """

    def images(number, seed):
        labels = np.tile(np.arange(classes), number)  # the classes in turn: only their order within a class counts
        x = np.random.default_rng(seed).integers(0, 256, (len(labels), size, size, 3), np.uint8)
        x[..., 0] = labels[:, None, None]
        x[..., 1] = (np.repeat(np.arange(number), classes) % 251)[:, None, None]
        return x, labels

    (train_x, train_y), (test_x, test_y) = images(train, 0), images(test, 1)
    np.savez(path, train_images=train_x, train_labels=train_y, test_images=test_x, test_labels=test_y)


def read(x, data):
    """Class and number of normalised pictures `[..., height, width, 3]` that were not augmented."""
    pixels = np.rint(np.asarray(x)[..., 0, 0, :] * data.std + data.mean).astype(int)
    return pixels[..., 0], pixels[..., 1]
