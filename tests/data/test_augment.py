import pytest
import torch

from simplicit.data.augment import SHIFT, augmented
from simplicit.errors import InputError


def images(m=3, size=(16, 8)):
    return torch.rand(m, 2, *size, generator=torch.Generator().manual_seed(0))


def test_the_first_copy_is_the_image_and_the_second_its_mirror_image():
    u = images()
    assert augmented(u, 1, 0) is u
    one, two = augmented(u, 2, 0).split(3)
    assert torch.equal(one, u)
    assert torch.equal(two.flip(3), u)


def test_further_copies_are_shifted_and_every_other_is_mirrored():
    u = images()
    copies = augmented(u, 6, 0).split(3)
    moved = 0
    for k, copy in enumerate(copies[2:], 2):
        for one, image in zip(copy.flip(3) if k % 2 else copy, u, strict=True):
            height, width = image.shape[1:]
            top, left = height // SHIFT, width // SHIFT
            found = []
            for y in range(-top, top + 1):
                for x in range(-left, left + 1):
                    inner = (slice(None), slice(top, height - top), slice(left, width - left))
                    shifted = image.roll((-y, -x), (1, 2))[inner]
                    found.append(((y, x), torch.equal(one[inner], shifted)))
            where = [shift for shift, same in found if same]
            assert len(where) == 1
            moved += where[0] != (0, 0)
    assert moved


def test_the_seed_decides():
    u = images()
    assert torch.equal(augmented(u, 4, 5), augmented(u, 4, 5))
    assert not torch.equal(augmented(u, 4, 5), augmented(u, 4, 6))


def test_a_flat_image_stays_flat():
    assert torch.equal(augmented(torch.ones(2, 3, 9, 9), 3, 0), torch.ones(6, 3, 9, 9))


@pytest.mark.parametrize("shape", [(4, 784), (4, 28, 28), (4, 3, 1, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(InputError, match="augmentation 2: accepted .* is 1"):
        augmented(torch.rand(shape), 2, 0)
