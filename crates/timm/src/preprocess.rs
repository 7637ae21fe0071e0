//! From image files to what a model takes.

use std::path::Path;

use serde::{Deserialize, Serialize};
use timm_data::{DataError, Image, Rng, Transform, TransformConfig, decode};
use timm_graph::Tensor;
use timm_models::pretrained::PretrainedCfg;
use timm_models::{Blueprint, Model};

/// How images become a model's input: timm's data config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataConfig {
    /// Channels, height, width.
    pub input_size: [usize; 3],
    pub interpolation: String,
    /// Share of the resized image that the crop keeps.
    pub crop_pct: f64,
    /// `center`, `squash` or `border`.
    pub crop_mode: String,
    /// Of pixels in 0–1.
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

impl From<&PretrainedCfg> for DataConfig {
    fn from(cfg: &PretrainedCfg) -> Self {
        let three = |v: &[f64], otherwise: [f64; 3]| <[f64; 3]>::try_from(v).unwrap_or(otherwise);
        DataConfig {
            input_size: cfg.input_size,
            interpolation: cfg.interpolation.clone(),
            crop_pct: cfg.crop_pct,
            crop_mode: cfg.crop_mode.clone(),
            mean: three(&cfg.mean, timm_data::IMAGENET_DEFAULT_MEAN),
            std: three(&cfg.std, timm_data::IMAGENET_DEFAULT_STD),
        }
    }
}

impl From<&Blueprint> for DataConfig {
    /// That of the pretrained tag, at the size and with the channels that the model was built for.
    fn from(model: &Blueprint) -> Self {
        let mut data = DataConfig::from(model.pretrained_cfg());
        let [height, width] = model.args().img_size.unwrap_or([data.input_size[1], data.input_size[2]]);
        data.input_size = [model.args().in_chans.unwrap_or(data.input_size[0]), height, width];
        data
    }
}

impl From<&Model> for DataConfig {
    fn from(model: &Model) -> Self {
        DataConfig::from(&**model)
    }
}

impl DataConfig {
    /// The options of the evaluation transform.
    ///
    /// # Errors
    /// An unknown interpolation or crop mode.
    pub fn evaluation(&self) -> Result<TransformConfig, DataError> {
        Ok(TransformConfig {
            input_size: self.input_size,
            interpolation: self.interpolation.parse()?,
            crop_pct: self.crop_pct,
            crop_mode: self.crop_mode.parse()?,
            mean: self.mean,
            std: self.std,
            ..TransformConfig::evaluation()
        })
    }

    /// Reads an image file and brings it to the input's size: `[H, W, 3]` bytes.
    ///
    /// # Errors
    /// A file that is missing, damaged, or no image.
    pub fn load_bytes(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, DataError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let bytes =
            std::fs::read(path).map_err(|source| DataError::Io { path: path.to_path_buf(), source })?;
        self.apply(&decode(&bytes, &name)?)
    }

    /// Brings an image to the input's size: `[H, W, 3]` bytes.
    ///
    /// # Errors
    /// An unknown interpolation or crop mode.
    pub fn apply(&self, image: &Image) -> Result<Vec<u8>, DataError> {
        Transform::new(self.evaluation()?)?.apply(image, &mut Rng::for_sample(0, 0, 0))
    }

    /// Reads an image file as the input of [`timm_models::Model::forward`]: `[1, 3, H, W]`, normalised.
    ///
    /// # Errors
    /// As [`DataConfig::load_bytes`].
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Tensor, DataError> {
        Ok(self.normalize(&self.load_bytes(path)?))
    }

    /// `[H, W, 3]` bytes as `[1, 3, H, W]` normalised numbers.
    pub fn normalize(&self, bytes: &[u8]) -> Tensor {
        let [_, height, width] = self.input_size;
        let number =
            |i: usize, c: usize| ((bytes[i * 3 + c] as f64 / 255.0 - self.mean[c]) / self.std[c]) as f32;
        let data = (0..3).flat_map(|c| (0..height * width).map(move |i| number(i, c))).collect();
        Tensor::new(&[1, 3, height, width], data)
    }
}

/// The `k` largest of `values` with their positions, largest first; of equal ones the first comes first.
pub fn top_k(values: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.into_iter().take(k).map(|i| (i, values[i])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_orders_and_keeps_the_first_of_equals() {
        assert_eq!(top_k(&[1.0, 3.0, 2.0, 3.0], 3), [(1, 3.0), (3, 3.0), (2, 2.0)]);
        assert_eq!(top_k(&[1.0], 5), [(0, 1.0)]);
    }

    #[test]
    fn normalisation_is_per_channel_and_planar() {
        let cfg = timm_models::pretrained::pretrained_cfg("resnet50").unwrap();
        let config = DataConfig { input_size: [3, 1, 2], ..DataConfig::from(&cfg) };
        let x = config.normalize(&[255, 0, 0, 0, 0, 255]);
        assert_eq!(x.shape, [1, 3, 1, 2]);
        assert!((x.data[0] - (1.0 - 0.485) / 0.229).abs() < 1e-6);
        assert!((x.data[5] - (1.0 - 0.406) / 0.225).abs() < 1e-6);
    }
}
