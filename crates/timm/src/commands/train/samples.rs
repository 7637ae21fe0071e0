//! A few validation images for `timm infer`: of a folder the file itself, of the embedded set pictures made for it.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use timm_data::{Dataset, Source};

/// Images to write.
const COUNT: usize = 5;

/// A path to pass to `timm infer`: an image of the data set, or a folder with some of its images, written into the
/// run's folder.
pub fn write(run: &Path, dataset: &dyn Dataset) -> Result<PathBuf> {
    let folder = run.join("samples");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for i in 0..COUNT.min(dataset.len()) {
        // Spread over the set, so that classes differ.
        let index = i * dataset.len() / COUNT.min(dataset.len());
        let Ok((source, target)) = dataset.load(index) else { continue };
        let label = target.classes().first().map_or(usize::MAX, |&label| label as usize);
        let class = dataset.class_names().get(label).map_or("", |name| name.as_str());
        let class: String =
            class.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
        match source {
            Source::Encoded(bytes) => {
                let name = dataset.name(index);
                let extension = Path::new(&name).extension().map_or("img".into(), |e| e.to_string_lossy());
                std::fs::write(folder.join(format!("{class}_{i}.{extension}")), bytes)?;
            }
            Source::Decoded(image) => {
                let path = folder.join(format!("{class}_{i}.png"));
                let file = BufWriter::new(File::create(&path)?);
                let mut encoder = png::Encoder::new(file, image.width as u32, image.height as u32);
                encoder.set_color(png::ColorType::Rgb);
                encoder.write_header()?.write_image_data(&image.data)?;
            }
        }
    }
    Ok(folder)
}
