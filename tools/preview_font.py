"""Writes crates/timm/src/commands/data/font.bin: the letters of `timm data preview`.

The font is Aileron Regular by Sora Sagano, dedicated to the public domain (CC0), as Pillow carries it.

Layout: the height of all letters, then the advance of each of the characters 32 to 126, a byte each; then their
coverage, a byte a pixel, in rows of advance + 2 pixels that begin one pixel left of the letter.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 15
OUT = Path(__file__).parent.parent / "crates/timm/src/commands/data/font.bin"


def main() -> None:
    font = ImageFont.load_default(SIZE)
    assert font.getname() == ("Aileron", "Regular"), font.getname()
    ascent, descent = font.getmetrics()
    letters = [chr(code) for code in range(32, 127)]
    advances = [round(font.getlength(letter)) for letter in letters]
    data = bytearray([ascent + descent, *advances])
    for letter, advance in zip(letters, advances):
        image = Image.new("L", (advance + 2, ascent + descent))
        ImageDraw.Draw(image).text((1, ascent), letter, fill=255, font=font, anchor="ls")
        data += image.tobytes()
    OUT.write_bytes(data)
    print(f"{OUT}: {len(data)} bytes")


if __name__ == "__main__":
    main()
