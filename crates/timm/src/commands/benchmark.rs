#[derive(clap::Args, Debug)]
pub struct Options {}
pub fn run(_: Options) -> anyhow::Result<()> {
    anyhow::bail!(
        "`timm benchmark` is not available yet; the example `steps` of the crate timm-cpu times a model"
    )
}
