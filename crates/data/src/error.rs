//! What can go wrong between a path and a batch.

use std::path::PathBuf;

/// An error of a reader, a decoder, a transform or the loader. Each message names the thing, what was
/// found and what would have been right.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are no image of a known format.
    #[error("{path} is not an image: {found}; readable formats are JPEG, PNG, WebP, GIF, BMP, TIFF and PNM")]
    NotAnImage {
        /// Display name of the image.
        path: String,
        /// What the first bytes look like.
        found: String,
    },
    /// The format was recognised, but the content is broken or cut short.
    #[error("cannot decode {path} as {format}: {reason}")]
    Decode {
        /// Display name of the image.
        path: String,
        /// The format its first bytes announce.
        format: &'static str,
        /// The decoder's reason.
        reason: String,
    },
    /// A decompression bomb, or an image larger than any network's input needs.
    #[error(
        "{path} is {width} x {height} pixels, more than the limit of {limit} pixels; scale it down first"
    )]
    TooLarge {
        /// Display name of the image.
        path: String,
        /// Width the header states.
        width: u64,
        /// Height the header states.
        height: u64,
        /// Largest accepted `width * height`.
        limit: u64,
    },
    /// A folder or list without a single readable image.
    #[error("found no images in {place}; {hint}")]
    NoImages {
        /// Where was searched.
        place: String,
        /// What was looked for.
        hint: String,
    },
    /// A data set or one of its splits does not exist.
    #[error("no data set '{name}': {reason}")]
    NoDataset {
        /// What was asked for.
        name: String,
        /// Why it could not be opened and what to do.
        reason: String,
    },
    /// A class map that cannot be used.
    #[error("class map {}: {reason}", path.display())]
    ClassMap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tar archive, table or list that is damaged, cut short or not what it should be.
    #[error("cannot read the images in {}: {reason}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// A target that no classifier of the set can have.
    #[error("the target cannot be used: {reason}")]
    Target {
        /// What is wrong with it.
        reason: String,
    },
    /// Two splits that name different classes.
    #[error("the classes of {left} and {right} differ: {difference}")]
    ClassMismatch {
        /// Name of the first set.
        left: String,
        /// Name of the second set.
        right: String,
        /// The classes that only one of them has.
        difference: String,
    },
    /// An option's value is outside what it accepts.
    #[error("{option} = {value} is not valid; expected {expected}")]
    InvalidOption {
        /// timm's name of the option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// An option of timm's that is not there yet.
    #[error("{what} is not supported yet; {remedy}")]
    Unsupported {
        /// The option and its value.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// An index beyond the end of a data set.
    #[error("index {index} is outside a data set of {len} images")]
    OutOfRange {
        /// The index asked for.
        index: usize,
        /// Size of the data set.
        len: usize,
    },
    /// An image that the transform cannot make an input of.
    #[error("cannot transform an image of {width} x {height} pixels: {reason}")]
    Transform {
        /// Width of the image.
        width: usize,
        /// Height of the image.
        height: usize,
        /// Why not.
        reason: String,
    },
    /// A reader or the loader failed in a way that is a bug of this program.
    #[error("a loader thread failed: {reason}; please report this")]
    Internal {
        /// The panic's message.
        reason: String,
    },
}

/// The message of a caught panic.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_string())
}
