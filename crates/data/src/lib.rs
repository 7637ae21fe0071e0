//! Images in, batches out: readers, decoding, timm's transforms, and a loader on threads.
//!
//! The way of the data:
//!
//! ```text
//! Dataset (folder, digits, synthetic) ──load──▶ bytes ──decode──▶ Image ──Transform──▶ u8 NHWC batch
//! ```
//!
//! Batches stay `u8`; the model's graph normalises them. Every random number of a sample comes from
//! (seed, epoch, sample), so batches are the same bytes at any thread count and after a resume.
//!
//! ```
//! use std::sync::Arc;
//! use timm_data::{Loader, LoaderConfig, OpenOptions, Transform, TransformConfig, open_dataset};
//!
//! # fn main() -> Result<(), timm_data::DataError> {
//! let dataset = open_dataset("digits", "train", &OpenOptions::default())?;
//! let transform = Transform::new(TransformConfig { input_size: [3, 32, 32], ..TransformConfig::training() })?;
//! let loader = Loader::new(dataset, transform, LoaderConfig { batch_size: 64, ..LoaderConfig::training() })?;
//! for batch in loader.epoch(0, 0) {
//!     let batch = batch?;
//!     assert_eq!(batch.images.len(), batch.valid * 32 * 32 * 3);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The embedded digits are the *Optical Recognition of Handwritten Digits* set: see [`Digits`].

mod decode;
mod error;
mod image;
mod loader;
mod mixup;
mod naflex_mixup;
mod readers;
mod real_labels;
mod rng;
mod transforms;

pub use decode::{Limits, MAX_PIXELS, Part, Request, decode, decode_part, image_format};
pub use error::DataError;
pub use image::Image;
pub use loader::{
    Batch, BatchSchedule, Epoch, Failure, Loader, LoaderConfig, LoaderReport, LoaderTimes, OnError, Order,
    Pace, PatchGrid, Place,
};
pub use mixup::{MixLabels, MixMode, Mixup, MixupConfig};
pub use naflex_mixup::NaflexMixup;
pub use readers::{
    ClassMap, Dataset, Digits, FolderDataset, HfDataset, IMAGE_EXTENSIONS, ImageNetInfo, ListDataset,
    OpenOptions, Shard, Source, Subset, SyntheticDataset, TarDataset, Target, TargetFormat, WdsDataset,
    check_head, check_same_classes, dataset_name, open_dataset,
};
pub use real_labels::{RealAccuracy, RealLabels};
pub use rng::Rng;
pub use transforms::{
    CropMode, DEFAULT_CROP_PCT, Drawn, EraseMode, Geometry, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD, Interpolation, KeepRatioVariation, NaflexTransform,
    OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, Padding, PatchErasing, PatchErasingConfig, Patches, RatioToSequence,
    Region, SequenceConfig, SequenceGeometry, SpatialMode, TrainCropMode, Transform, TransformConfig, View,
    image_size_for_seq, naflex_batch_size, patchify, resize,
};
