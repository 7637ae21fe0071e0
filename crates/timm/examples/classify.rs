//! What an image shows: the five likeliest classes.
//!
//! ```text
//! cargo run --release --example classify -- [IMAGE [WEIGHTS [MODEL]]]
//! ```
//!
//! WEIGHTS is a safetensors file, of this program's own training or a state_dict saved by timm; without it the
//! weights are random. MODEL is needed where the file does not say which model it holds, and is resnet18 otherwise.
//! Prints the preprocessing and a line for each class:
//!
//! ```text
//! resnet18: 3x224x224, bicubic, crop 0.95, 11.69 M parameters
//!   class 155      0.12 %
//!   …
//! ```

use std::sync::Arc;

use timm::data::Image;
use timm::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize| arguments.get(i).map(String::as_str);
    let (model, saved) = match (argument(1), argument(2)) {
        // The file says which model it is, how to preprocess for it, and what the classes are called.
        (Some(weights), None) => {
            let (model, saved) = SavedModel::load(weights, Arc::new(CpuEngine::default()))?;
            (model, Some(saved))
        }
        (Some(weights), Some(name)) => {
            let mut model = timm::create_model(name, &ModelArgs::default())?;
            model.load_checkpoint(weights, true)?;
            (model, None)
        }
        _ => (timm::create_model("resnet18", &ModelArgs::default())?, None),
    };
    let (data, names) = saved.map_or((None, vec![]), |saved| (saved.data, saved.class_names));
    let data = data.unwrap_or_else(|| DataConfig::from(&model));
    let [channels, height, width] = data.input_size;
    println!(
        "{}: {channels}x{height}x{width}, {}, crop {}, {:.2} M parameters",
        model.name(),
        data.interpolation,
        data.crop_pct,
        model.param_count() as f64 / 1e6
    );
    let image = match argument(0) {
        Some(path) => data.load(path)?,
        None => data.normalize(&data.apply(&Image::filled(320, 240, [200, 120, 40]))?),
    };
    let logits = model.forward(&image)?;
    let sum: f32 = logits.data.iter().map(|v| v.exp()).sum();
    for (class, logit) in top_k(&logits.data, 5) {
        let name = names.get(class).cloned().unwrap_or(format!("class {class}"));
        println!("  {name:<12} {:6.2} %", 100.0 * logit.exp() / sum);
    }
    Ok(())
}
