//! Broken images: an error each, never a panic, never an image that Pillow would not have read.

mod common;

use common::fixture;
use timm_data::{Limits, Request, Rng, decode, decode_part};

const FILES: [&str; 12] = [
    "420.jpg",
    "progressive.jpg",
    "gray.jpg",
    "cmyk.jpg",
    "tiny.png",
    "palette.png",
    "rgba16.png",
    "palette.gif",
    "image.bmp",
    "lossless.webp",
    "lossy.webp",
    "image.tif",
];

#[test]
fn files_cut_short_at_every_length() {
    for name in FILES {
        let bytes = fixture(name);
        let mut accepted = Vec::new();
        for length in 0..bytes.len() {
            match decode(&bytes[..length], name) {
                Ok(_) => accepted.push(length),
                Err(error) => {
                    let message = error.to_string();
                    assert!(
                        message.contains(name) && !message.contains("decoder failed"),
                        "{length}: {message}"
                    );
                }
            }
        }
        // A JPEG is whole only with its end marker. The other formats may leave out what follows the last
        // pixel: a trailer, metadata.
        let last_pixels = if name.ends_with(".jpg") { bytes.len() } else { bytes.len() - bytes.len() / 3 };
        assert!(
            accepted.iter().all(|&length| length >= last_pixels),
            "{name} of {}: {accepted:?}",
            bytes.len()
        );
    }
}

#[test]
fn damaged_bytes() {
    for name in FILES {
        let bytes = fixture(name);
        let mut rng = Rng::new(1);
        for _ in 0..400 {
            let mut broken = bytes.clone();
            for _ in 0..1 + rng.index(4) {
                // More often in the headers, where sizes and tables are.
                let end = if rng.chance(0.5) { broken.len() } else { broken.len().min(200) };
                let place = rng.index(end);
                broken[place] = rng.next_u64() as u8;
            }
            if let Ok(image) = decode(&broken, name) {
                assert_eq!(image.data.len(), image.width * image.height * 3);
            }
        }
    }
}

#[test]
fn the_content_decides_and_not_the_name() {
    assert_eq!(decode(&fixture("tiny.png"), "photo.jpg").unwrap().width, 8);
    for bytes in [&b""[..], b"\n", b"<html>not found</html>", &[0xFF, 0xD8, 0xFF], b"BM", b"RIFF\0\0\0\0WEBP"]
    {
        let message = decode(bytes, "photo.jpg").unwrap_err().to_string();
        assert!(message.contains("photo.jpg"), "{message}");
    }
}

#[test]
fn files_that_were_found_by_fuzzing() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/findings");
    let mut read = 0;
    for name in ["jpeg", "png", "webp", "gif", "bmp", "tiff", "pnm"] {
        // Most formats never gave anything.
        let Ok(files) = std::fs::read_dir(folder.join(name)) else { continue };
        for file in files {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let limits = Limits { max_pixels: 1 << 22 };
            if let Err(error) = decode_part(&bytes, name, &limits, Request::whole) {
                assert!(!error.to_string().contains("decoder failed"), "{}: {error}", path.display());
            }
            read += 1;
        }
    }
    assert!(read > 0);
}
