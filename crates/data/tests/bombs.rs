//! Decompression bombs: refused by the size in their header, before anything is decoded or memory is taken.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::fixture;
use timm_data::{DataError, Limits, Request, decode_part};

struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
/// One test at a time: the allocator counts for all threads.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: all is left to the system's allocator; only sizes are noted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Overwrites the bytes behind the first place where `marker` stands.
fn patch(mut bytes: Vec<u8>, marker: &[u8], skip: usize, new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(marker.len()).position(|window| window == marker).expect("the marker");
    let at = at + marker.len() + skip;
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes =
        patch(fixture("tiny.png"), b"IHDR", 0, &[width.to_be_bytes(), height.to_be_bytes()].concat());
    let crc = !bytes[12..29].iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// A TIFF file of one strip: grey, 8 bits.
fn tiff(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    let entries: [(u16, u16, u32); 9] = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, 16),
    ];
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.resize(216, 0);
    bytes
}

fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let edges = |width: u32, height: u32| [width.to_le_bytes(), height.to_le_bytes()].concat();
    let large = [0xFF, 0xDC, 0xFF, 0xDC];
    let lossless = {
        // 14 bits each of width - 1 and height - 1: 16384 x 16384.
        let file = fixture("lossless.webp");
        patch(file, b"VP8L", 5, &0x0FFF_FFFF_u32.to_le_bytes())
    };
    vec![
        ("JPEG", patch(fixture("420.jpg"), &[0xFF, 0xC0], 3, &large)),
        ("progressive JPEG", patch(fixture("progressive.jpg"), &[0xFF, 0xC2], 3, &large)),
        ("PNG", png(100_000, 100_000)),
        ("palette GIF", patch(fixture("palette.gif"), b"GIF8", 2, &[0xFF; 4])),
        ("BMP", patch(fixture("image.bmp"), b"BM", 16, &edges(60_000, 60_000))),
        ("lossless WebP", lossless),
        ("lossy WebP", patch(fixture("lossy.webp"), &[0x9D, 0x01, 0x2A], 0, &[0xFF, 0x3F, 0xFF, 0x3F])),
        ("TIFF", tiff(100_000, 100_000)),
        ("PNM", b"P6 100000 100000 255\n0123456789".to_vec()),
        ("plain PNM", b"P2 100000 100000 255\n0 1 2 3 4".to_vec()),
        ("bits of PNM", b"P4 100000 100000\n0123456789".to_vec()),
    ]
}

#[test]
fn every_format_refuses_bombs_by_their_header() {
    let _alone = ALONE.lock();
    for (name, bytes) in bombs() {
        LARGEST.store(0, Relaxed);
        let mut asked = false;
        let outcome = decode_part(&bytes, name, &Limits::default(), |width, height| {
            asked = true;
            Request::whole(width, height)
        });
        let largest = LARGEST.load(Relaxed);
        let error = outcome.expect_err(name);
        assert!(matches!(error, DataError::TooLarge { .. }), "{name}: {error}");
        assert!(!asked, "{name}: its size passed");
        assert!(largest < 1 << 20, "{name}: {largest} bytes were taken at once");
    }
}

/// The limit is the number of pixels, to the pixel.
#[test]
fn a_lower_limit_refuses_what_is_fine_otherwise() {
    let _alone = ALONE.lock();
    for name in
        ["420.jpg", "tiny.png", "palette.gif", "image.bmp", "lossless.webp", "lossy.webp", "image.tif"]
    {
        let bytes = fixture(name);
        let whole = |max_pixels: u64| decode_part(&bytes, name, &Limits { max_pixels }, Request::whole);
        let full = whole(1 << 22).expect(name).full;
        let pixels = (full.0 * full.1) as u64;
        assert!(whole(pixels).is_ok(), "{name}");
        assert!(matches!(whole(pixels - 1), Err(DataError::TooLarge { .. })), "{name}");
    }
}
