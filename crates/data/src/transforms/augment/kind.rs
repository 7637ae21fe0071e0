//! timm's names of operations, and what a level means to each.

use super::Surroundings;
use crate::Rng;
use crate::transforms::ops::Operation;

macro_rules! kinds {
    ($($name:ident),* $(,)?) => {
        /// An operation by its name in timm. No policy of timm's translates by absolute distances.
        #[cfg_attr(not(test), allow(dead_code))]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(in crate::transforms) enum Kind { $($name),* }

        impl Kind {
            /// With their names.
            #[cfg(test)]
            pub(super) const ALL: &[(&str, Kind)] = &[$((stringify!($name), Kind::$name)),*];
        }
    };
}

kinds!(
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    PosterizeIncreasing,
    PosterizeOriginal,
    Solarize,
    SolarizeIncreasing,
    SolarizeAdd,
    Color,
    ColorIncreasing,
    Contrast,
    ContrastIncreasing,
    Brightness,
    BrightnessIncreasing,
    Sharpness,
    SharpnessIncreasing,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    TranslateXRel,
    TranslateYRel,
    Desaturate,
    GaussianBlur,
    GaussianBlurRand,
);

/// Turns into its opposite half of the time.
fn either_sign(value: f64, rng: &mut Rng) -> f64 {
    if rng.uniform() > 0.5 { -value } else { value }
}

impl Kind {
    /// Whether the operation interpolates between pixels.
    pub(in crate::transforms) fn moves_pixels(self) -> bool {
        use Kind::*;
        matches!(self, Rotate | ShearX | ShearY | TranslateX | TranslateY | TranslateXRel | TranslateYRel)
    }

    /// The operation at a level, of which 10 is full, on an image of `width` x `height`.
    pub(super) fn operation(
        self,
        level: f64,
        surroundings: &Surroundings,
        width: usize,
        height: usize,
        rng: &mut Rng,
    ) -> Operation {
        // Divided first, as in timm: whole numbers are cut off below.
        let share = level / 10.0;
        let whole = |full: f64| (share * full) as i32;
        let enhance = share * 1.8 + 0.1;
        let increasing = |rng: &mut Rng| (1.0 + either_sign(share * 0.9, rng)).max(0.1);
        let right = |pixels: f64| Operation::Affine([1.0, 0.0, pixels, 0.0, 1.0, 0.0]);
        let down = |pixels: f64| Operation::Affine([1.0, 0.0, 0.0, 0.0, 1.0, pixels]);
        match self {
            Kind::AutoContrast => Operation::AutoContrast,
            Kind::Equalize => Operation::Equalize,
            Kind::Invert => Operation::Invert,
            Kind::Rotate => Operation::Rotate(either_sign(share * 30.0, rng)),
            Kind::Posterize => Operation::Posterize(whole(4.0)),
            Kind::PosterizeIncreasing => Operation::Posterize(4 - whole(4.0)),
            Kind::PosterizeOriginal => Operation::Posterize(whole(4.0) + 4),
            Kind::Solarize => Operation::Solarize(whole(256.0).min(256)),
            Kind::SolarizeIncreasing => Operation::Solarize(256 - whole(256.0).min(256)),
            Kind::SolarizeAdd => Operation::SolarizeAdd(whole(110.0).min(128)),
            Kind::Color => Operation::Color(enhance),
            Kind::Contrast => Operation::Contrast(enhance),
            Kind::Brightness => Operation::Brightness(enhance),
            Kind::Sharpness => Operation::Sharpness(enhance),
            Kind::ColorIncreasing => Operation::Color(increasing(rng)),
            Kind::ContrastIncreasing => Operation::Contrast(increasing(rng)),
            Kind::BrightnessIncreasing => Operation::Brightness(increasing(rng)),
            Kind::SharpnessIncreasing => Operation::Sharpness(increasing(rng)),
            Kind::ShearX => Operation::Affine([1.0, either_sign(share * 0.3, rng), 0.0, 0.0, 1.0, 0.0]),
            Kind::ShearY => Operation::Affine([1.0, 0.0, 0.0, either_sign(share * 0.3, rng), 1.0, 0.0]),
            Kind::TranslateX => right(either_sign(share * surroundings.translate_const, rng)),
            Kind::TranslateY => down(either_sign(share * surroundings.translate_const, rng)),
            Kind::TranslateXRel => right(either_sign(share * surroundings.translate_pct, rng) * width as f64),
            Kind::TranslateYRel => down(either_sign(share * surroundings.translate_pct, rng) * height as f64),
            // A factor of 0.5 to 1 takes away as much of the colour.
            Kind::Desaturate => Operation::Color((1.0 - (0.5 + 0.5 * share).clamp(0.5, 1.0)).clamp(0.0, 1.0)),
            Kind::GaussianBlur => Operation::GaussianBlur((0.1 + (2.0 - 0.1) * share).clamp(0.1, 2.0)),
            Kind::GaussianBlurRand => {
                Operation::GaussianBlur(rng.uniform_in(0.1, 2.0 * share.clamp(0.0, 1.0)))
            }
        }
    }
}
