from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fastres.errors import InputError, OptionError
from fastres.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    list_images,
    load_image,
    load_images,
    load_pixels,
)
from fastres.transforms import Transforms
from tests.support.photographs import PHOTOGRAPHS

CHINA = PHOTOGRAPHS[0]


def torchvision_pipeline(preprocessing: Transforms) -> Any:
    mode = transforms.InterpolationMode(preprocessing.interpolation)
    return transforms.Compose(
        [
            transforms.Resize(preprocessing.resize, mode),
            transforms.CenterCrop(preprocessing.crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


def gradient(width: int, height: int) -> Image.Image:
    """A picture in which every pixel differs, so that a shift by one shows."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([across * 7 % 256, down * 11 % 256, (across + down) * 5 % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "preprocessing",
    [
        Transforms(),
        Transforms(resize=232, interpolation="bicubic"),
        Transforms(resize=64, crop=48, interpolation="nearest"),
        Transforms(resize=800, crop=601, mean=(0.5, 0.4, 0.3), std=(1.0, 0.5, 0.25)),
    ],
    ids=["imagenet", "bicubic", "nearest", "enlarged"],
)
def test_photographs_are_preprocessed_as_torchvision_does(
    path: Path, preprocessing: Transforms
) -> None:
    ours = load_image(path, preprocessing)
    theirs = torchvision_pipeline(preprocessing)(Image.open(path).convert("RGB"))
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, theirs)


def test_odd_sizes_round_as_torchvision_does() -> None:
    wrong = []
    for resize, crop in ((32, 28), (32, 27), (33, 28), (31, 31), (30, 35)):
        preprocessing = Transforms(resize=resize, crop=crop)
        theirs = torchvision_pipeline(preprocessing)
        for height in (1, 3, 31, 32, 64, 75):
            for width in (1, 2, 17, 31, 32, 33, 50):
                image = gradient(width, height)
                if not torch.equal(load_image(image, preprocessing), theirs(image)):
                    wrong.append((width, height, resize, crop))
    assert wrong == []


def test_a_known_picture_gives_known_numbers() -> None:
    image = Image.new("RGB", (300, 400), (255, 0, 51))
    pixels = load_image(image)
    assert pixels.shape == (3, 224, 224)
    for channel, value in enumerate((1.0, 0.0, 0.2)):
        expected = (value - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(pixels[channel], torch.full((224, 224), expected))


def test_every_source_gives_the_same_pixels() -> None:
    with Image.open(CHINA) as image:
        decoded = image.convert("RGB")
    wanted = load_image(CHINA)
    assert torch.equal(load_image(str(CHINA)), wanted)
    assert torch.equal(load_image(decoded), wanted)
    assert torch.equal(load_image(np.asarray(decoded)), wanted)
    assert torch.equal(load_image(np.asarray(decoded)[:, ::-1][:, ::-1]), wanted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = gradient(40, 30).convert(mode)
    preprocessing = Transforms(resize=32, crop=32)
    wanted = torchvision_pipeline(preprocessing)(image.convert("RGB"))
    assert torch.equal(load_image(image, preprocessing), wanted)


def test_a_palette_with_a_transparent_colour_is_read_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "palette.png"
    image = gradient(40, 30).convert("P")
    image.save(file, transparency=bytes(range(0, 256)))
    preprocessing = Transforms(resize=30, crop=30)
    assert torch.equal(load_image(file, preprocessing), load_image(image, preprocessing))


def test_an_alpha_channel_is_dropped_not_blended() -> None:
    opaque = gradient(32, 32)
    transparent = opaque.copy()
    transparent.putalpha(0)
    preprocessing = Transforms(resize=32, crop=32)
    assert torch.equal(load_image(transparent, preprocessing), load_image(opaque, preprocessing))


def test_a_greyscale_array_becomes_three_equal_channels() -> None:
    grey = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    preprocessing = Transforms(resize=32, crop=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = load_image(grey, preprocessing)
    wanted = torch.from_numpy(grey.copy()).float() / 255
    assert all(torch.equal(channel, wanted) for channel in pixels)


def test_exif_orientation_is_followed_only_when_asked(tmp_path: Path) -> None:
    upright, file = gradient(40, 24), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.save(file, exif=exif)
    sizes = Transforms(resize=24, crop=24)
    assert torch.equal(load_image(file, sizes), load_image(upright, sizes))
    rotated = upright.transpose(Image.Transpose.ROTATE_270)
    turned = load_image(file, sizes, exif_orientation=True)
    assert torch.equal(turned, load_image(rotated, sizes))
    assert not torch.equal(turned, load_image(file, sizes))
    (batch,) = load_images([file], sizes, exif_orientation=True)
    assert torch.equal(batch, turned)


def test_without_sizes_an_image_stays_as_it_is() -> None:
    image = gradient(40, 24)
    as_it_is = Transforms(resize=None, crop=None)
    assert torch.equal(load_pixels(image, as_it_is), torch.from_numpy(np.array(image)))
    assert load_image(image, as_it_is).shape == (3, 24, 40)
    assert load_pixels(image, Transforms(resize=None, crop=20)).shape == (20, 20, 3)
    assert load_pixels(image, Transforms(resize=12, crop=None)).shape == (12, 20, 3)
    with pytest.raises(InputError, match="of 2 sizes, 24x40 and 40x24 for two"):
        load_images([image, image.rotate(90, expand=True)], as_it_is)


def test_one_channel_is_grey() -> None:
    grey = Transforms(resize=24, crop=20, mean=(0.5,), std=(0.25,))
    pixels = load_image(gradient(40, 24), grey)
    wanted = load_pixels(gradient(40, 24).convert("L"), grey)
    assert pixels.shape == (1, 20, 20)
    assert wanted.shape == (20, 20, 1)
    torch.testing.assert_close(pixels[0], (wanted[..., 0] / 255 - 0.5) / 0.25)
    with pytest.raises(OptionError, match="2 channels: image files have 3"):
        load_image(gradient(40, 24), Transforms(mean=(0.5, 0.5), std=(1.0, 1.0)))


def test_pixels_of_0_to_255_for_networks_that_were_trained_on_them() -> None:
    caffe = Transforms(resize=24, crop=20, mean=(104.0, 117.0, 123.0), std=(1, 1, 1), divisor=1)
    pixels = load_pixels(gradient(40, 24), caffe)
    wanted = pixels.float() - torch.tensor([104.0, 117.0, 123.0])
    assert torch.equal(load_image(gradient(40, 24), caffe), wanted.permute(2, 0, 1))


def test_a_batch_keeps_the_order() -> None:
    batch = load_images(PHOTOGRAPHS[:3])
    assert batch.shape == (3, 3, 224, 224)
    for row, path in zip(batch, PHOTOGRAPHS[:3], strict=True):
        assert torch.equal(row, load_image(path))


def test_images_are_listed_by_path_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "cats/2.webp", "cats/1.jpeg", "._a.jpg", ".git/c.png", "x.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert listed == ["a.JPG", "b.png", "cats/1.jpeg", "cats/2.webp"]


def test_a_directory_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(InputError, match=r"holds no image; looked for \.bmp"):
        list_images(tmp_path)
    with pytest.raises(InputError, match=r"notes\.txt is not a directory"):
        list_images(tmp_path / "notes.txt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg does not exist"):
        load_image(tmp_path / "gone.jpg")


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path.name} cannot be read as an image"):
        load_image(tmp_path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "text.jpg"
    file.write_text("this is no picture")
    with pytest.raises(InputError, match=r"text\.jpg is no image in one of the formats BMP"):
        load_images([CHINA, file])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "gif", "webp", "bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    whole, half = tmp_path / f"whole.{suffix}", tmp_path / f"half.{suffix}"
    gradient(200, 150).save(whole)
    load_image(whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"half\.{suffix} "):
        load_image(half)


def test_an_image_too_large_to_decode_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bomb.png"
    gradient(64, 64).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"bomb\.png is too large to decode"):
        load_image(file)


def test_a_sliver_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"1x60000 pixels, .* would be 15360000 pixels long"):
        load_image(Image.new("RGB", (1, 60000)))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_more_than_eight_bits_are_refused(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "deep.tiff"
    Image.new(mode, (32, 32)).save(file)
    with pytest.raises(InputError, match=rf"deep\.tiff has pixels of mode '{mode}'"):
        load_image(file)


def test_a_mode_without_an_rgb_form_is_refused() -> None:
    with pytest.raises(InputError, match="of mode 'La' has no RGB form"):
        load_image(Image.new("La", (32, 32)))


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 shaped \[8, 8, 3\]"),
        (np.zeros((3, 8, 9), np.uint8), r"uint8 shaped \[3, 8, 9\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"uint8 shaped \[1, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 shaped \[0, 8, 3\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"torch\.uint8 shaped \[8, 8, 3\]"),
        (None, r"NoneType shaped \[\]"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array: Any, got: str) -> None:
    with pytest.raises(InputError, match=rf"got an array of {got}; expected a path"):
        load_image(array)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no images were given"):
        load_images([])


def test_a_single_path_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(InputError, match=r"takes several sources, got the one path 'photo\.jpg'"):
        load_images("photo.jpg")


def test_interpolations_differ() -> None:
    """Were the option ignored, the comparison with torchvision would not tell for one of them."""
    names: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic")
    images = [load_image(CHINA, Transforms(interpolation=name)) for name in names]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])
