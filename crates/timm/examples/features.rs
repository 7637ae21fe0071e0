//! Feature maps of a backbone, as for detection or segmentation.
//!
//! ```text
//! cargo run --release --example features -- [MODEL]
//! ```
//!
//! Prints the chosen levels of the network as published, then dilated so that no level is coarser than 1/8 of the
//! image:
//!
//! ```text
//! resnet18, output stride 32
//!   layer2   [2, 128, 28, 28]   1/8 of the image
//!   layer3   [2, 256, 14, 14]   1/16 of the image
//!   layer4   [2, 512, 7, 7]     1/32 of the image
//! resnet18, output stride 8
//!   layer2   [2, 128, 28, 28]   1/8 of the image
//!   …
//! ```

use timm::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or("resnet18".into());
    let images = Tensor::full(&[2, 3, 224, 224], 0.5);
    for output_stride in [32, 8] {
        let args = ModelArgs { output_stride: Some(output_stride), ..ModelArgs::default() };
        let model = timm::create_model(&name, &args)?;
        // timm's out_indices, here the last three levels; only the layers that they need are run.
        let out_indices = [-3, -2, -1];
        let maps = model.features(&images, out_indices)?;
        let levels = &model.feature_info()[model.feature_info().len() - maps.len()..];
        println!("{name}, output stride {output_stride}");
        for (info, map) in levels.iter().zip(&maps) {
            let shape = format!("{:?}", map.shape);
            println!("  {:<8} {shape:<18} 1/{} of the image", info.module, info.reduction);
        }
    }
    Ok(())
}
