"""Augmentation: every image by itself, the operations Pillow's, all of it repeatable from one state."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from refusals import refused
from scipy.stats import binom

from landscape.errors import InputError
from trainers import augment

COLOURED = ("autoaugment", "autoaugment-released", "simclr", "imagenet", "imagenet-randaugment")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def bytes_of(n, size, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=generator).to(torch.uint8)


def images_of(n, size, channels=3, dtype=torch.float32):
    return bytes_of(n, size, channels).to(dtype).div_(255)


def same(image, n):
    return image[None].repeat(n, 1, 1, 1)


def as_likely_as(hits, n, p):
    """Beyond these bounds once in a million times."""
    assert binom.ppf(1e-6, n, p) <= hits <= binom.ppf(1 - 1e-6, n, p), (hits, n, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", augment.names())
def test_every_augmentation_gives_images_of_the_size_asked_for(name, dtype):
    for side in (16, 18):
        images = images_of(8, side, dtype=dtype)
        images[0], images[1] = 0, 1
        before = images.clone()
        found = augment.build(name, 16)(images)
        assert found.shape == (8, 3, 16, 16)
        assert found.dtype == dtype
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", augment.names())
def test_the_state_of_the_generator_repeats_a_batch_bit_for_bit(name):
    images, change = images_of(32, 16), augment.build(name, 16)
    state = torch.get_rng_state()
    first, second = change(images), change(images)
    torch.set_rng_state(state)
    assert torch.equal(change(images), first)
    assert torch.equal(augment.build(name, 16)(images), second)
    assert torch.equal(first, second) == (name == "none")


@pytest.mark.parametrize("name", augment.names()[1:])
def test_each_image_of_a_batch_is_changed_by_itself(name):
    """Of 64 equal images, crops of size 16 can make 25; a draw for the whole batch would make 1."""
    found = augment.build(name, 16)(same(images_of(1, 16)[0], 64))
    assert len(torch.unique(found.flatten(1), dim=0)) > 15


@pytest.mark.parametrize("side", [8, 11])
def test_none_cuts_the_middle(side):
    images = images_of(3, side)
    first = round((side - 8) / 2)
    assert torch.equal(augment.build("none", 8)(images), images[:, :, first : first + 8, first : first + 8])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("side", [8, 9])
def test_crops_are_all_windows_of_the_padded_image(side, channels):
    """One black pixel around: 3 x 3 windows of 8 x 8 pixels, or 4 x 4 where the image is a pixel larger."""
    image = images_of(1, side, channels)[0]
    padded = torch.zeros(channels, side + 2, side + 2)
    padded[:, 1:-1, 1:-1] = image
    found = augment.build("crop", 8)(same(image, 400))
    shifts = range(side + 2 - 8 + 1)
    windows = torch.stack([padded[:, y : y + 8, x : x + 8] for y in shifts for x in shifts])
    matches = (found[:, None] == windows).flatten(2).all(dim=2)
    assert (matches.sum(dim=1) == 1).all()
    assert (matches.sum(dim=0) > 0).all()  # one is missed once in 10^10 times


def test_half_of_the_crops_are_mirrored():
    image = images_of(1, 8, channels=1)[0]
    padded = torch.zeros(1, 10, 10)
    padded[:, 1:-1, 1:-1] = image
    windows = torch.stack([padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    found = augment.build("crop-flip", 8)(same(image, 400))
    plain, mirrored = ((found[:, None] == w).flatten(2).all(dim=2).any(dim=1) for w in (windows, windows.flip(-1)))
    assert (plain ^ mirrored).all()
    as_likely_as(int(mirrored.sum()), 400, 0.5)


@pytest.mark.parametrize(("name", "smallest"), [("simclr", 0.2), ("imagenet", 0.08)])
def test_resized_crops_are_boxes_of_the_areas_and_shapes_asked_for(name, smallest):
    """On a ramp a box can be read off: bilinear interpolation is exact, and its steps are the box's sides over 16."""
    side, size, n = 40, 16, 300
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    ramps = torch.stack([at.expand(side, side), at[:, None].expand(side, side)])  # across, down
    # private: the crop without the steps after it
    crop = augment._steps(name, size)[0]
    across, down = crop(same(ramps, n)).unbind(dim=1)
    width, height = (across.diff(dim=2)[:, :, 1:-1] * size), (down.diff(dim=1)[:, 1:-1] * size)
    for sides in (width, height):
        torch.testing.assert_close(sides, sides[:, :1, :1].expand_as(sides), atol=1e-5, rtol=0)
    width, height = width[:, 0, 0], height[:, 0, 0]
    rounding = 1.1  # boxes are of whole pixels
    areas, shapes = width * height, width / height
    assert areas.min() > smallest / rounding
    assert areas.min() < smallest + 0.1
    assert areas.max() > 0.9
    assert 0.75 / rounding < shapes.min() < 0.8
    assert 1.25 < shapes.max() < 4 / 3 * rounding
    left = across[:, 0, 7] - 7.5 / size * width
    assert left.min() > -1e-5
    assert (left + width).max() < 1 + 1e-5
    assert left.std() > 0.05


def test_a_crop_of_everything_changes_nothing():
    images = images_of(4, 16, dtype=torch.float64)
    whole = torch.tensor([[0.0, 0], [15, 0], [15, 15], [0, 15]]).expand(4, 4, 2)
    # private: a box that is not drawn
    found = augment._resized_crop(images, 16, lambda shape: {"src": whole})
    torch.testing.assert_close(found, images, atol=1e-5, rtol=0)


def test_the_black_square_lies_around_any_pixel():
    # private: the square without the steps before it
    found = augment._cutout(torch.ones(3000, 2, 6, 6), side=2)
    assert torch.equal(found[:, 0], found[:, 1])
    kinds, counts = torch.unique(found[:, 0].flatten(1), dim=0, return_counts=True)
    expected = torch.ones(36, 6, 6)
    for i in range(36):
        y, x = divmod(i, 6)
        expected[i, max(0, y - 1) : y + 1, max(0, x - 1) : x + 1] = 0
    assert {tuple(k.tolist()) for k in kinds} == {tuple(k.tolist()) for k in expected.flatten(1)}
    for hits in counts.tolist():
        as_likely_as(hits, 3000, 1 / 36)


PILLOW = {
    "color": (lambda image, v: ImageEnhance.Color(image).enhance(1 + 0.9 * v), 2),
    "contrast": (lambda image, v: ImageEnhance.Contrast(image).enhance(1 + 0.9 * v), 2),
    "brightness": (lambda image, v: ImageEnhance.Brightness(image).enhance(1 + 0.9 * v), 1),
    "sharpness": (lambda image, v: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * v), 2),
    "auto_contrast": (lambda image, v: ImageOps.autocontrast(image), 1),
    "equalize": (lambda image, v: ImageOps.equalize(image), 0),
    "invert": (lambda image, v: ImageOps.invert(image), 0),
    "posterize": (lambda image, v: ImageOps.posterize(image, round(8 - 4 * abs(v))), 0),
    "solarize": (lambda image, v: ImageOps.solarize(image, 256 * (1 - abs(v))), 0),
    "solarize_add": (lambda image, v: image.point(lambda b: min(255, b + 110 * abs(v)) if b < 128 else b), 1),
    "identity": (lambda image, v: image, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PILLOW)
def test_operations_on_colours_are_those_of_pillow(name, dtype):
    """Within the rounding to bytes, of which Pillow makes up to two."""
    of_pillow, levels = PILLOW[name]
    pixels = bytes_of(4, 40) // 2 + 40  # a narrow range, so that contrast has something to stretch
    pixels[3] = torch.arange(40, dtype=torch.uint8) * 6  # every part of the range
    strengths = torch.tensor([7 / 9, -4 / 9, 1.0, -1.0])
    found = augment.operations()[name](pixels.to(dtype) / 255, strengths).clamp(0, 1) * 255
    assert found.dtype == dtype
    for one, image, v in zip(found, pixels, strengths.tolist(), strict=True):
        expected = np.asarray(of_pillow(Image.fromarray(image.permute(1, 2, 0).numpy()), v))
        assert np.abs(one.permute(1, 2, 0).numpy() - expected).max() <= levels + 1e-3


def test_every_byte_is_equalized_and_posterized_as_itself():
    """Bytes over 255 times 255 may fall short of the byte: cutting them off there would be a level too low."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    for dtype in (torch.float32, torch.float64):
        images = pixels.to(dtype) / 255
        torch.testing.assert_close(augment.operations()["equalize"](images, torch.ones(1)), images)
        found = augment.operations()["posterize"](images * (1 - 1e-6), torch.full((1,), 0.25)) * 255
        assert torch.equal(found.round().to(torch.uint8), pixels // 2 * 2)


def turned(v):
    """The affine map of Pillow's rotation about the centre of 32 x 32 pixels."""
    cosine, sine = math.cos(v * math.pi / 6), math.sin(v * math.pi / 6)
    return cosine, -sine, 16 * (1 - cosine + sine), sine, cosine, 16 * (1 - sine - cosine)


MAPS = {
    "shear_x": lambda v: (1, 0.3 * v, 0, 0, 1, 0),
    "shear_y": lambda v: (1, 0, 0, 0.3 * v, 1, 0),
    "translate_x": lambda v: (1, 0, 150 / 331 * 32 * v, 0, 1, 0),
    "translate_y": lambda v: (1, 0, 0, 0, 1, 150 / 331 * 32 * v),
    "rotate": turned,
}


@pytest.mark.parametrize("name", MAPS)
def test_operations_on_shapes_are_those_of_pillow(name):
    pixels = bytes_of(3, 32)
    strengths = torch.tensor([1.0, -1.0, 5 / 9])
    found = augment.operations()[name](pixels.double() / 255, strengths)
    for one, image, v in zip(found, pixels, strengths.tolist(), strict=True):
        a, b, c, d, e, f = MAPS[name](v)
        y, x = np.mgrid[:32, :32] + 0.5
        source = np.stack([a * x + b * y + c, d * x + e * y + f])
        inside = ((source > 0.5) & (source < 31.5)).all(axis=0)
        beyond = ((source < -0.5) | (source > 32.5)).any(axis=0)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = picture.transform((32, 32), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
        one = one.permute(1, 2, 0).numpy()
        assert np.abs(one * 255 - np.asarray(expected))[inside].max() < 1.01  # Pillow cuts off
        assert np.unique(one[beyond]).tolist() == [0.5]
        assert inside.sum() > 300
        assert beyond.sum() > 10


@pytest.mark.parametrize("name", ["translate_x", "translate_y", "rotate"])
def test_the_authors_rotate_one_way_and_take_the_nearest_pixel(name):
    """Pillow's pixel, but where the source lies within rounding of the border between two."""
    pixels = bytes_of(3, 32)
    strengths = torch.tensor([1.0, -1.0, 5 / 9])
    found = augment.operations(released=True)[name](pixels.double() / 255, strengths)
    for one, image, v in zip(found, pixels, strengths.tolist(), strict=True):
        a, b, c, d, e, f = MAPS[name](abs(v) if name == "rotate" else v)
        y, x = np.mgrid[:32, :32] + 0.5
        source = np.stack([a * x + b * y + c, d * x + e * y + f])
        sure = ((source > 0.5) & (source < 31.5) & (np.abs(source - source.round()) > 1e-6)).all(axis=0)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = picture.transform((32, 32), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.NEAREST)
        assert np.array_equal((one.permute(1, 2, 0).numpy() * 255).round()[sure], np.asarray(expected)[sure])
        assert sure.sum() > 300


def test_the_authors_shear_with_a_cubic():
    """On a ramp torch's kernel, of a = -0.75, is off a line by at most |2a + 1| t (1 - t) (1 - 2t) of a step."""
    off = 0.5 * 3**0.5 / 18 / 31
    ramp = (torch.arange(32.0) / 31).expand(1, 3, 32, 32)
    inside = slice(12, 20)
    for name in ("shear_x", "shear_y"):
        ours, theirs = (augment.operations(released)[name] for released in (False, True))
        v = torch.tensor([0.7])
        wrong = (ours(ramp, v) - theirs(ramp, v))[..., inside, inside].abs().max()
        assert wrong <= off + 1e-6
        assert wrong > 0.8 * off or name == "shear_y"  # along which the ramp is flat
        noise = images_of(1, 32)
        assert (ours(noise, v) - theirs(noise, v)).abs().mean() > 0.01


def test_the_policy_is_the_one_that_kornia_has():
    from kornia.augmentation.auto.autoaugment.autoaugment import cifar10_policy

    assert len(augment.CIFAR10_POLICY) == len(cifar10_policy) == 25
    for ours, theirs in zip(augment.CIFAR10_POLICY, cifar10_policy, strict=True):
        for (name, probability, magnitude), expected in zip(ours, theirs, strict=True):
            assert (name, probability) == expected[:2]
            assert expected[2] in {None, magnitude}


def test_each_image_gets_its_own_policy_with_its_probabilities():
    """Two policies: invert in 3 of 10 cases, or reduce to 4 bits always; then both invert never."""
    never = ("invert", 0.0, 9)
    policy = ((("invert", 0.3, 9), never), (("posterize", 1.0, 9), never))
    image = bytes_of(1, 4)[0]
    # private: with policies of the test's
    found = augment._auto_augment(same(image / 255, 1000), policy) * 255
    kinds = {"plain": image, "inverted": 255 - image, "posterized": image // 16 * 16}
    counts = {kind: int((found.round() == pixels).flatten(1).all(dim=1).sum()) for kind, pixels in kinds.items()}
    assert sum(counts.values()) == 1000
    as_likely_as(counts["inverted"], 1000, 0.15)
    as_likely_as(counts["plain"], 1000, 0.35)


@pytest.mark.parametrize("magnitude", [0, 9])
def test_magnitudes_have_either_sign(magnitude):
    policy = ((("brightness", 1.0, magnitude), ("identity", 1.0, 0)),)
    # private: with a policy of the test's
    found = augment._auto_augment(torch.full((1000, 3, 4, 4), 0.5), policy)[:, 0, 0, 0]
    factors = 1 + 0.1 * magnitude * (2 * (found > 0.5) - 1)
    torch.testing.assert_close(found, 0.5 * factors)
    as_likely_as(int((found > 0.5).sum()), 1000, 0.5 if magnitude else 0.0)


def test_randaugment_leaves_as_many_images_as_its_probabilities_say():
    """Per turn 1/2, and 1/15 of the other half draws what changes nothing; two inversions make 1 more in 900."""
    images = images_of(6000, 8) * 0.7 + 0.1
    # private: this step alone
    unchanged = (augment._rand_augment(images) == images).flatten(1).all(dim=1)
    as_likely_as(int(unchanged.sum()), 6000, (1 / 2 + 1 / 30) ** 2)


def test_a_fifth_of_simclr_is_grey():
    found = augment.build("simclr", 8)(images_of(1000, 8))
    grey = (found.amax(dim=1) - found.amin(dim=1)).flatten(1).amax(dim=1) < 1e-6
    as_likely_as(int(grey.sum()), 1000, 0.2)


@pytest.mark.parametrize("name", COLOURED)
def test_colours_need_three_channels(name):
    with refused(InputError, 3, 1, augment=name):
        augment.build(name, 8)(images_of(2, 8, channels=1))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("cropflip", 8, ("cropflip", "crop-flip")),
        ("crop", 0, (1, 0)),
        ("crop", 9, (8, 9)),
    ],
)
def test_what_does_not_fit_is_refused(name, size, message):
    with refused(InputError, *message):
        augment.build(name, size)(images_of(2, 8))


@pytest.mark.parametrize("size", [1, 2])
def test_images_without_an_inside_keep_their_sharpness_as_with_pillow(size):
    images = bytes_of(3, size)
    sharper = augment.operations()["sharpness"](images / 255, torch.tensor([-1.0, 0.5, 1.0]))
    assert torch.equal((sharper * 255).round().to(torch.uint8), images)
    for image in images:
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        assert np.array_equal(np.asarray(ImageEnhance.Sharpness(pillow).enhance(1.9)), np.asarray(pillow))
    for name in COLOURED:
        assert augment.build(name, size)(images / 255).shape == (3, 3, size, size)
