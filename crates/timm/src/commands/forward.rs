#[derive(clap::Args, Debug)]
pub struct Options {}
pub fn run(_: Options) -> anyhow::Result<()> {
    anyhow::bail!("`timm forward` is not available yet; Model::forward of the library gives the output")
}
