"""What a file tells of its picture comes through, by other readers than ours."""

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms

from tbsn import images, metadata, tags
from tbsn.encoding import Encoding, check_kept, write, write_rows
from tbsn.errors import InputError
from tbsn.images import open_photo

PIXELS = (np.arange(16 * 24 * 3).reshape(16, 24, 3) // 5).astype(np.uint8)
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><a>" + "ü".encode() + b"</a></x:xmpmeta>"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER_NOTE = b"Nikon\0\2\x10\0\0" + bytes(range(201))
Entry = tuple[int, int, int, bytes]


def directory(entries: list[Entry], start: int, order: str, following: int = 0) -> bytes:
    """A TIFF directory that stands at ``start``."""
    inner, base = b"", start + 6 + 12 * len(entries)
    table = struct.pack(order + "H", len(entries))
    for tag, kind, count, data in entries:
        table += struct.pack(order + "HHI", tag, kind, count)
        table += data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", base + len(inner))
        inner += data + b"\0" * (len(data) % 2) if len(data) > 4 else b""
    return table + struct.pack(order + "I", following) + inner


def exif(order: str, orientation: int = 6) -> bytes:
    """EXIF as a camera writes it: maker note, GPS, thumbnail, a comment, padding inside and after it."""
    thumbnail = io.BytesIO()
    Image.fromarray(PIXELS[:8, :8]).save(thumbnail, "JPEG")

    def pack(code: str, *values: int) -> bytes:
        return struct.pack(order + code, *values)

    def main(camera: int, place: int) -> list[Entry]:
        return [
            (0x10F, 2, 6, b"NIKON\0"),
            (0x112, 3, 1, pack("H", orientation)),
            (0x11A, 5, 1, pack("II", 300, 1)),
            (0x11B, 5, 1, pack("II", 300, 1)),
            (0x128, 3, 1, pack("H", 2)),
            (0x131, 2, 10, b"Ver.1.00 \0"),
            (0x8769, 4, 1, pack("I", camera)),
            (0x8825, 4, 1, pack("I", place)),
        ]

    camera = 8 + len(directory(main(0, 0), 8, order))
    shot = directory(
        [
            (0x829A, 5, 1, pack("II", 1, 60)),
            (0x9000, 7, 4, b"0230"),
            (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE),
            (0x9286, 7, 16, b"ASCII\0\0\0padded  "),
            (0xEA1C, 7, 64, bytes(64)),
        ],
        camera,
        order,
    )
    place = camera + len(shot)
    where = directory([(1, 2, 2, b"N\0"), (2, 5, 3, pack("IIIIII", 48, 1, 51, 1, 30, 1))], place, order)
    preview = place + len(where)
    small = [(0x103, 3, 1, pack("H", 6)), (0x201, 4, 1, b"----"), (0x202, 4, 1, pack("I", len(thumbnail.getvalue())))]
    small[1] = (0x201, 4, 1, pack("I", preview + len(directory(small, 0, order))))
    head = (b"II*\0" if order == "<" else b"MM\0*") + pack("I", 8)
    first = directory(main(camera, place), 8, order, preview)
    return head + first + shot + where + directory(small, preview, order) + thumbnail.getvalue() + b"PADDING"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of what stands in a PNG, WebP or JPEG file, up to its pixels."""
    found, at = [], 8 if data.startswith(b"\x89PNG") else 12 if data.startswith(b"RIFF") else 2
    while at < len(data):
        if data.startswith(b"\x89PNG"):
            length, name = struct.unpack(">I4s", data[at : at + 8])
            content, after = data[at + 8 : at + 8 + length], 12 + length
            assert data[at : at + after] == chunk(name, content)
        elif data.startswith(b"RIFF"):
            name, length = struct.unpack("<4sI", data[at : at + 8])
            content, after = data[at + 8 : at + 8 + length], 8 + length + length % 2
        else:
            name, length = struct.unpack(">2sH", data[at : at + 4])
            content, after = data[at + 4 : at + 2 + length], 2 + length
            if name == b"\xff\xda":
                break
        found.append((name, content))
        at += after
    return found


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def through(source: Path, target: Path) -> Path:
    """Read and write, as denoising does, with another picture."""
    photo = images.read(source)
    write(target, photo.pixels[::-1], photo)
    return target


def rich(folder: Path, kind: str, order: str) -> Path:
    path = folder / f"in.{kind}"
    prefix = b"Exif\0\0" if kind == "jpg" else b""
    known = {"exif": prefix + exif(order), "xmp": XMP, "icc_profile": PROFILE}
    if kind != "png":
        Image.fromarray(PIXELS).save(path, **known)
    else:
        Image.fromarray(PIXELS).save(path)
        insert(path, 33, chunk(b"iCCP", b"mine\0\0" + zlib.compress(PROFILE, 1)))
        insert(path, 33, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP) + chunk(b"eXIf", exif(order)))
    return path


def insert(path: Path, at: int, extra: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + extra + whole[at:])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_profile_exif_and_xmp_are_equal_byte_for_byte(tmp_path: Path, kind: str, order: str) -> None:
    source = rich(tmp_path, kind, order)
    before, after = (opened(path) for path in (source, through(source, tmp_path / f"out.{kind}")))
    assert after.info["exif"].removeprefix(b"Exif\0\0") == exif(order)
    assert after.info["xmp"] == before.info["xmp"] == XMP
    assert after.info["icc_profile"] == PROFILE
    assert not np.array_equal(np.asarray(before), np.asarray(after))
    assert after.getexif()[0x112] == 6 and after.size == before.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_stay_as_stored(tmp_path: Path, orientation: int) -> None:
    for kind, prefix in {"jpg": b"Exif\0\0", "png": b"", "webp": b""}.items():
        path = tmp_path / f"in.{kind}"
        Image.fromarray(PIXELS).save(path, exif=prefix + exif(">", orientation), quality=100)
        after = opened(through(path, tmp_path / f"out.{kind}"))
        assert after.getexif()[0x112] == orientation and after.size == (24, 16)
        assert abs(np.asarray(after).astype(int) - PIXELS[::-1]).mean() < 5
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    with tifffile.TiffFile(through(path, tmp_path / "out.tif")) as file:
        assert file.pages[0].tags[274].value == orientation and np.array_equal(file.asarray(), PIXELS[::-1])


def test_a_png_keeps_its_colour_chunks_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(PIXELS).save(path)
    first = [(b"gAMA", struct.pack(">I", 100000)), (b"cHRM", bytes(range(32))), (b"pHYs", struct.pack(">IIB", 3, 5, 0))]
    texts = [
        (b"tEXt", b"Software\0ours"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 99)),
        (b"tEXt", b"Comment\0b"),
    ]
    insert(path, 33, b"".join(chunk(*each) for each in first))
    insert(path, path.stat().st_size - 12, b"".join(chunk(*each) for each in texts))
    found = chunks(through(path, tmp_path / "out.png").read_bytes())
    assert [each for each in found if each[0] not in (b"IHDR", b"IDAT", b"IEND")] == first + texts


def test_a_jpeg_keeps_its_comment_resolution_and_long_xmp_but_no_preview_nor_stray_bytes(tmp_path: Path) -> None:
    path = tmp_path / "in.jpg"
    Image.fromarray(PIXELS).save(path, dpi=(180, 90))
    kept = [
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40 + bytes(65000)),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0"),
        segment(0xFE, b"a comment"),
    ]
    stray = b"between markers" + bytes(99) + b"\xff\0\xff\x01\xd0\xe1\0\x14Exif\0\0"
    insert(path, 20, stray.join(kept) + b"\xff" + segment(0xE2, b"MPF\0II*\0"))
    jfif = path.read_bytes()[2:20]
    assert through(path, tmp_path / "out.jpg").read_bytes()[2:].startswith(jfif + b"".join(kept))
    assert b"MPF" not in (tmp_path / "out.jpg").read_bytes()
    # With an Adobe segment that says RGB, pixels are not YCbCr; ours are, and say so.
    Image.fromarray(PIXELS).save(path, quality=100, keep_rgb=True)
    assert b"Adobe\0" in path.read_bytes()
    again = np.asarray(opened(through(path, tmp_path / "rgb.jpg")))
    assert abs(again.astype(int) - PIXELS[::-1]).mean() < 5


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_nothing_is_made_up(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    Image.fromarray(PIXELS).save(path)
    before, after = (opened(each) for each in (path, through(path, tmp_path / f"out.{kind}")))
    assert set(after.info) <= set(before.info) | {"resolution", "dpi"}
    assert not ({0x8769, 0x131, 0x132} & set(after.getexif()))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_keeps_its_tags_page_and_all(tmp_path: Path, order: str, big: bool) -> None:
    path = tmp_path / "in.tif"
    extra = [
        (271, "s", 0, "Maker", True),
        (318, "2I", 2, (3127, 10000, 3290, 10000), True),
        (33432, "s", 0, "someone", True),
        (33550, "d", 3, (1.0, 2.0, 0.0), True),
        (700, "B", len(XMP), XMP, True),
        (34675, "B", len(PROFILE), PROFILE, True),
        (50838, "I", 2, (12, 9), True),
        (50839, "B", 21, bytes(range(21)), True),
        (60000, "H", 1, 7, True),
    ]
    options = {
        "photometric": "rgb",
        "description": "{1: 'scale'}",
        "resolution": (300, 150),
        "resolutionunit": 2,
        "software": "ours",
        "metadata": None,
    }
    tifffile.imwrite(path, PIXELS, byteorder=order, bigtiff=big, extratags=extra, **options)
    through(path, tmp_path / "out.tif")
    with tifffile.TiffFile(path) as source, tifffile.TiffFile(tmp_path / "out.tif") as target:
        before, after = source.pages[0].tags, target.pages[0].tags
        for tag in (270, 271, 282, 283, 296, 305, 318, 700, 33432, 33550, 34675, 50838):
            assert after[tag].value == before[tag].value, tag
            assert after[tag].dtype == before[tag].dtype, tag
        assert 60000 not in after and np.array_equal(target.asarray(), PIXELS[::-1])


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_colours_stay_without_what_is_private(tmp_path: Path, kind: str) -> None:
    source, target = rich(tmp_path, kind, "<"), tmp_path / f"out.{kind}"
    Image.fromarray(PIXELS).save(target, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    metadata.put(target, metadata.collect(source), private=False)
    assert opened(target).info["icc_profile"] == PROFILE and "xmp" not in opened(target).info
    assert MAKER_NOTE not in target.read_bytes() and len(opened(target).info["exif"]) < 30
    metadata.put(target, metadata.collect(source))
    assert opened(target).info["exif"].removeprefix(b"Exif\0\0") == exif("<")


def test_every_page_keeps_its_own_tags(tmp_path: Path) -> None:
    for name, software in (("in.tif", "one"), ("out.tif", "other")):
        with tifffile.TiffWriter(tmp_path / name, byteorder=">") as file:
            for page in range(3):
                file.write(PIXELS, description=f"{software} {page}", software=software, metadata=None)
    metadata.put(tmp_path / "out.tif", metadata.collect(tmp_path / "in.tif"))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert [page.tags[270].value for page in file.pages] == ["one 0", "one 1", "one 2"]
        assert all(np.array_equal(page.asarray(), PIXELS) for page in file.pages)


def test_a_damaged_tag_is_left_out_alone(tmp_path: Path) -> None:
    """What claims more bytes than there are leaves the others be; what libtiff takes from no file goes into none."""
    path, four = tmp_path / "in.tif", np.dstack([PIXELS, PIXELS[..., :1]])
    extra = [(274, "H", 1, 0, True), (305, "s", 0, "software", True), (33432, "s", 0, "someone", True)]
    tifffile.imwrite(path, four, photometric="rgb", extrasamples="unspecified", extratags=extra, software=False)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[33432].offset
    with path.open("r+b") as file:
        file.seek(at + 4)
        file.write(struct.pack("<I", 1 << 31))
    photo = images.read(path)
    write(tmp_path / "out.tif", photo.pixels, photo)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        kept = file.pages[0].tags
        assert kept[305].value == "software" and kept[338].value == (0,) and 33432 not in kept
        assert 274 not in kept or kept[274].value == 1
    assert np.array_equal(images.read(tmp_path / "out.tif").pixels, four)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("big", "kind"), [(False, 4), (False, 13), (True, 4), (True, 18)])
def test_a_tiff_keeps_exif_however_it_points_to_it(tmp_path: Path, order: str, big: bool, kind: int) -> None:
    """As pointers of other programs are: a long, an IFD, an IFD8, in either byte order."""
    path, length = tmp_path / "in.tif", 8 if big else 4
    extra = [(34664, "Q" if kind == 18 else "I", 1, 0, True)]
    tifffile.imwrite(path, PIXELS, photometric="rgb", byteorder=order, bigtiff=big, extratags=extra, metadata=None)
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[34664].offset
    whole = bytearray(path.read_bytes())
    code = "Q" if kind == 18 else "I"
    whole[at : at + 4 + length] = struct.pack(order + ("HHQ" if big else "HHI"), 34665, kind, 1)
    whole[at + 4 + length : at + 4 + 2 * length] = struct.pack(order + code, len(whole)).ljust(length, b"\0")
    count, head = order + ("Q" if big else "H"), order + ("HHQ" if big else "HHI")
    entry = struct.pack(head, 0x9000, 7, 4) + b"0232".ljust(length, b"\0")
    path.write_bytes(whole + struct.pack(count, 1) + entry + bytes(length))
    through(path, tmp_path / "out.tif")
    assert opened(tmp_path / "out.tif").getexif().get_ifd(0x8769)[0x9000] == b"0232"


@pytest.mark.parametrize("order", "<>")
def test_exif_goes_over_to_other_formats(tmp_path: Path, order: str) -> None:
    rich(tmp_path, "jpg", order)
    place = opened(tmp_path / "in.jpg").getexif().get_ifd(0x8825)
    for source, target in (("in.jpg", "a.tif"), ("a.tif", "b.png"), ("b.png", "c.webp"), ("c.webp", "d.tif")):
        through(tmp_path / source, tmp_path / target)
    through(tmp_path / "d.tif", tmp_path / "e.jpg")
    through(tmp_path / "in.jpg", tmp_path / "f.webp")
    through(tmp_path / "f.webp", tmp_path / "g.png")
    through(tmp_path / "g.png", tmp_path / "h.jpg")
    for name in ("f.webp", "g.png", "h.jpg"):
        assert opened(tmp_path / name).info["exif"].removeprefix(b"Exif\0\0") == exif(order)
    for name in ("a.tif", "b.png", "c.webp", "d.tif", "e.jpg"):
        found = opened(tmp_path / name)
        assert found.info["icc_profile"] == PROFILE, name
        assert found.getexif()[0x10F] == "NIKON" and found.getexif()[0x112] == 6
        assert found.getexif().get_ifd(0x8769)[0x927C] == MAKER_NOTE
        assert found.getexif().get_ifd(0x8825) == place


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("given", [(), (282, 283, 296)])
def test_a_tiff_has_a_resolution_only_if_it_had_one(tmp_path: Path, private: bool, given: tuple[int, ...]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS, photometric="rgb", metadata=None, resolution=(7, 7))
    with (tmp_path / "in.tif").open("r+b") as file:
        tags.add(file, [{}], resolution=bool(given))
    with tifffile.TiffFile(tmp_path / "in.tif") as file:
        before = {tag: file.pages[0].tags[tag].value for tag in (282, 283, 296) if tag in file.pages[0].tags}
        assert tuple(before) == given
    photo = images.read(tmp_path / "in.tif")
    write_rows(tmp_path / "out.tif", [PIXELS], PIXELS.shape, PIXELS.dtype, photo, Encoding(private=private))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        after = {tag: file.pages[0].tags[tag].value for tag in (282, 283, 296) if tag in file.pages[0].tags}
    assert after == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_resolution_goes_over_to_other_formats(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.png", dpi=(300, 300))
    found = opened(through(tmp_path / "in.png", tmp_path / f"out{suffix}"))
    assert float(found.info["dpi"][0] if suffix != ".webp" else found.getexif()[282]) == pytest.approx(300, abs=0.01)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("order", "<>")
def test_a_resolution_beside_exif_goes_over_with_it(tmp_path: Path, suffix: str, order: str) -> None:
    inside = Image.Exif()
    inside.endian = order
    inside[0x10F], inside[0x112] = "NIKON", 6
    inside.get_ifd(0x8769)[0x927C] = MAKER_NOTE
    Image.fromarray(PIXELS).save(tmp_path / "in.png", dpi=(300, 200), exif=inside)
    found = opened(through(tmp_path / "in.png", tmp_path / f"out{suffix}")).getexif()
    assert [round(float(found[tag])) for tag in (282, 283)] == [300, 200]
    assert found[0x10F] == "NIKON" and found[0x112] == 6 and found.get_ifd(0x8769)[0x927C] == MAKER_NOTE


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_resolution_in_exif_stays_without_what_is_private(tmp_path: Path, suffix: str) -> None:
    inside = Image.Exif()
    inside[282], inside[283], inside[296] = 300.0, 300.0, 2
    Image.fromarray(PIXELS).save(tmp_path / "in.webp", exif=inside)
    photo, path = images.read(tmp_path / "in.webp"), tmp_path / f"out{suffix}"
    write_rows(path, [PIXELS], PIXELS.shape, PIXELS.dtype, photo, Encoding(private=False))
    found = opened(path)
    assert round(float(found.info["dpi"][0] if suffix != ".webp" else found.getexif()[282])) == 300


def test_exif_that_is_too_long_for_a_jpeg_leaves_its_orientation(tmp_path: Path) -> None:
    inside = Image.Exif()
    inside[0x112], inside[282], inside[283], inside[296] = 6, 300.0, 300.0, 2
    inside.get_ifd(0x8769)[0x927C] = bytes(70000)
    Image.fromarray(PIXELS).save(tmp_path / "in.png", exif=inside)
    found = opened(through(tmp_path / "in.png", tmp_path / "out.jpg")).getexif()
    assert found[0x112] == 6 and found[282] == 300


def test_an_aspect_is_no_resolution(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.png")
    insert(tmp_path / "in.png", 33, chunk(b"pHYs", struct.pack(">IIB", 4, 3, 0)))
    assert b"\0\0\0\4\0\0\0\3\0" in through(tmp_path / "in.png", tmp_path / "out.png").read_bytes()
    assert opened(through(tmp_path / "in.png", tmp_path / "out.jpg")).info.get("dpi", (72, 72)) == (72, 72)


def test_a_thumbnail_in_jfif_is_private(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.jpg", dpi=(300, 300))
    whole = (tmp_path / "in.jpg").read_bytes()
    small = b"\xff\xe0" + struct.pack(">H", 16 + 12) + whole[6:18] + b"\2\2" + b"thumbnail..."
    (tmp_path / "in.jpg").write_bytes(whole[:2] + small + whole[20:])
    photo = images.read(tmp_path / "in.jpg")
    for private in (True, False):
        write_rows(tmp_path / "o.jpg", [PIXELS], PIXELS.shape, PIXELS.dtype, photo, Encoding(private=private))
        assert (b"thumbnail" in (tmp_path / "o.jpg").read_bytes()) == private
        assert opened(tmp_path / "o.jpg").info["dpi"] == (300, 300)


def test_a_profile_of_grey_goes_into_no_colours(tmp_path: Path) -> None:
    profile = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "in.png", icc_profile=profile)
    with pytest.raises(InputError, match="profile of grey"):
        check_kept(tmp_path / "out.webp", images.open_photo(tmp_path / "in.png"))
    check_kept(tmp_path / "out.png", images.open_photo(tmp_path / "in.png"))


@pytest.mark.parametrize("pages", [(), (4,)])
@pytest.mark.parametrize("kind", ["palette", "rgb"])
def test_what_tifffile_says_of_a_shape_is_not_kept_where_another_is_written(
    tmp_path: Path, kind: str, pages: tuple[int, ...]
) -> None:
    numbers = np.random.default_rng(0).integers(0, 255, (*pages, *((3,) * (kind == "rgb")), 16, 24), np.uint8)
    colours = {"colormap": np.arange(768, dtype=np.uint16).reshape(3, 256) * 85} if kind == "palette" else {}
    planes = {"planarconfig": "separate"} if kind == "rgb" else {}
    tifffile.imwrite(tmp_path / "in.tif", numbers, photometric=kind, **colours, **planes)
    photo = images.open_photo(tmp_path / "in.tif")
    pixels = photo.rows()(0, 16 * photo.pages)
    write_rows(tmp_path / "out.tif", [pixels], photo.shape, photo.dtype, photo)
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), pixels.reshape(*pages, 16, 24, 3))


def test_iptc_stays_with_its_format(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.jpg")
    insert(tmp_path / "in.jpg", 2, segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x05\x1c\x02\x19\0\0\0"))
    with through(tmp_path / "in.jpg", tmp_path / "out.tif").open("rb") as file:
        assert not {33723, 34377} & tags.read(file)[0].keys()


def test_big_endian_texts_and_blocks_stay_what_they_are(tmp_path: Path) -> None:
    iptc, place = b"\x1c\x02\x19\0\x02aa\0", tmp_path / "in.tif"
    tifffile.imwrite(place, PIXELS, photometric="rgb", byteorder=">")
    with place.open("r+b") as file:
        said = tags.UNICODE + "käse".encode("utf-16-be")
        tags.add(file, [{33723: (4, iptc), tags.EXIF: {tags.COMMENT: (7, said)}}])
    with through(place, tmp_path / "out.tif").open("rb") as file:
        page = tags.read(file)[0]
    assert page[33723][1] == iptc
    assert page[tags.EXIF][tags.COMMENT][1] == tags.UNICODE + "käse".encode("utf-16-le")


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_imagej_says_of_a_stack_stays(tmp_path: Path, order: Literal["<", ">"]) -> None:
    stack = np.arange(3 * 16 * 24, dtype=np.uint16).reshape(3, 16, 24)
    luts = [np.arange(768, dtype=np.uint8).reshape(3, 256) // (i + 1) for i in range(3)]
    said = {"Labels": ["a", "bc", "ü"], "Info": "of mice", "Ranges": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), "LUTs": luts}
    tifffile.imwrite(tmp_path / "in.tif", stack, imagej=True, byteorder=order, metadata={"axes": "CYX"} | said)
    photo = open_photo(tmp_path / "in.tif")
    write_rows(tmp_path / "out.tif", [stack.reshape(-1, 24, 1)], photo.shape, photo.dtype, photo)
    with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        one, other = before.imagej_metadata, after.imagej_metadata
    assert one and other and one.keys() == other.keys() >= said.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("sizes", [(1, b"abc"), (4, b""), (4, b"\xff\xff\xff\xff" * 3), (4, bytes(12))])
def test_damaged_metadata_of_imagej_does_no_harm(tmp_path: Path, sizes: tuple[int, bytes]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PIXELS, photometric="rgb", byteorder=">")
    with (tmp_path / "in.tif").open("r+b") as file:
        tags.add(file, [{tags.IMAGEJ_SIZES: sizes, tags.IMAGEJ: (1, b"IJIJlabl\xff\xff\xff\xffab")}])
    with through(tmp_path / "in.tif", tmp_path / "out.tif").open("rb") as file:
        assert len(tags.read(file)[0][tags.IMAGEJ][1]) == 14


@pytest.mark.parametrize("height", [128, 129, 200, 256, 257])
def test_no_tiff_has_two_strips(tmp_path: Path, height: int) -> None:
    write(tmp_path / "out.tif", np.zeros((height, 16, 1), np.uint16))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages[0].dataoffsets) != 2


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_no_resolution_becomes_none_or_the_one_that_exif_designates_for_it(
    tmp_path: Path, suffix: str, private: bool
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "in.webp")
    photo = images.read(tmp_path / "in.webp")
    path = tmp_path / f"out{suffix}"
    write_rows(path, [PIXELS], PIXELS.shape, PIXELS.dtype, photo, Encoding(private=private))
    dpi = opened(path).info.get("dpi", (72, 72))
    assert [round(float(value)) for value in dpi] == [72, 72]


def test_an_array_has_no_resolution(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", PIXELS)
    with tifffile.TiffFile(through(tmp_path / "in.npy", tmp_path / "out.tif")) as file:
        assert not {282, 283, 296} & {tag.code for tag in file.pages[0].tags}


@pytest.mark.parametrize("packing", ["lzw", "deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_stays_packed(tmp_path: Path, packing: str, dtype: type) -> None:
    pixels = PIXELS.astype(dtype)
    pyvips.Image.new_from_array(pixels).write_to_file(str(tmp_path / "in.tif"), compression=packing)
    through(tmp_path / "in.tif", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        assert after.pages[0].compression == before.pages[0].compression != 1
    assert np.array_equal(images.read(tmp_path / "out.tif").pixels, pixels[::-1])


def test_a_webp_without_loss_stays_so(tmp_path: Path) -> None:
    pixels = np.dstack([PIXELS, PIXELS[..., 0]])
    Image.fromarray(pixels).save(tmp_path / "in.webp", lossless=True, exact=True)
    photo = images.read(tmp_path / "in.webp")
    write(tmp_path / "out.webp", photo.pixels, photo)
    assert np.array_equal(np.asarray(opened(tmp_path / "out.webp")), pixels)
