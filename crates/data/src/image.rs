//! The image type every step shares.

/// An RGB image: `height * width * 3` bytes, rows from the top, channels interleaved (HWC).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Columns, in pixels.
    pub width: usize,
    /// Rows, in pixels.
    pub height: usize,
    /// `height * width * 3` bytes, `[H, W, C]`.
    pub data: Vec<u8>,
}

impl Image {
    /// An image filled with one colour.
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Image {
        let data = color.iter().copied().cycle().take(width * height * 3).collect();
        Image { width, height, data }
    }

    /// An RGB image from grey values, `[H, W]`. Returns `None` when their number is not `width * height`.
    pub fn from_gray(width: usize, height: usize, gray: &[u8]) -> Option<Image> {
        (gray.len() == width * height).then(|| Image {
            width,
            height,
            data: gray.iter().flat_map(|&value| [value; 3]).collect(),
        })
    }

    /// The pixel at column `x`, row `y`; `None` outside the image.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        self.data.get((y * self.width + x) * 3..)?.first_chunk::<3>().copied()
    }
}
